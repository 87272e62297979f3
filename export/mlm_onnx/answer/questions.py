"""`Answer`: the answer to a question in a context, from a bundle of a model that was fine-tuned to find it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict, overload

import numpy as np

from mlm_onnx.answer.queries import listed, read_all
from mlm_onnx.answer.tasks import Predictor
from mlm_onnx.answer.windows import Asked
from mlm_onnx.bundle.layout import ANSWER, QueryError


class _LeftOut(TypedDict, total=False):
    left_out: int
    """Tokens of the question that no window has room for; absent if it was read whole."""


class Answered(_LeftOut):
    """What `Answer` returns for a question."""

    question: str
    answer: str | None
    """`context[start:end]`; None where the context has no answer."""
    start: int | None
    """In code points."""
    end: int | None
    probability: float
    """The answer's share among all spans of all windows, and none where questions may have no answer."""


class Answer(Predictor):
    """`Answer("BUNDLE")(question="…", context="…")` → {"question", "answer", "start", "end", "probability"}.

    A context that is longer than the model's window is read in windows, each after the whole question; the answer is
    the best span of all of them. Threads may share a predictor. Arguments and errors are those of `Classify`.
    """

    task = ANSWER
    outputs = 2

    @overload
    def __call__(self, question: str, context: str) -> Answered: ...
    @overload
    def __call__(self, question: Sequence[str], context: str | Sequence[str]) -> list[Answered]: ...
    def __call__(self, question: str | Sequence[str], context: str | Sequence[str]) -> Answered | list[Answered]:
        """Return the answer to a question, or to each of several: about one context, or each about its own.

        Raises:
            QueryError: there are not as many contexts as questions, or a text exceeds a limit.
        """
        questions = listed(question, self.bundle.limits)
        contexts = listed(context, self.bundle.limits)
        if isinstance(context, str):
            contexts *= len(questions)
        if len(questions) != len(contexts) or (isinstance(question, str) and not isinstance(context, str)):
            raise QueryError(f"{len(questions)} questions about {len(contexts)} contexts: give one for each, or one")
        read = read_all(list(zip(questions, contexts, strict=True)), lambda both: self.reader.question(*both))
        found = iter(self._engine.map([row for each in read for row in each.rows], lambda _, logits: logits.copy()))
        answers = [
            self._answer(*each, [next(found) for _ in each[2].rows])
            for each in zip(questions, contexts, read, strict=True)
        ]
        return answers[0] if isinstance(question, str) else answers

    def once(self) -> None:
        """Answer one short question."""
        self("a", "a")

    def _answer(self, question: str, context: str, asked: Asked, logits: Sequence[np.ndarray]) -> Answered:
        every = np.concatenate(logits)
        window = np.repeat(np.arange(len(logits)), [len(each) for each in logits])
        null = np.array([each[0].sum() for each in logits])
        found = best_answer(every, window, asked.offsets, null, self.head.max_answer, self.head.no_answer)
        start, end = found.span or (None, None)
        answer = None if found.span is None else context[slice(*found.span)]
        told: _LeftOut = {"left_out": asked.left_out} if asked.left_out else {}
        return {
            "question": question,
            "answer": answer,
            "start": start,
            "end": end,
            "probability": found.probability,
            **told,
        }


class Best(NamedTuple):
    """The best span."""

    span: tuple[int, int] | None
    """In the context, in code points; None for no answer."""
    probability: float


def best_answer(
    logits: np.ndarray, window: np.ndarray, offsets: np.ndarray, null: np.ndarray, max_answer: int, no_answer: bool
) -> Best:
    """Return the best answer over all windows of a context, as `jax_mlm.tasks.questions.best_answer` does.

    Args:
        logits: [tokens, 2] of the first and the last token of an answer, all windows one after the other.
        window: [tokens] number of the window.
        offsets: [tokens, 2] where each token begins and ends in the context; both equal where no answer may be.
        null: [windows] sum of both logits at the first token of each window.
        max_answer: most tokens of an answer.
        no_answer: whether a question may have no answer: one more candidate, whose score is the lowest of `null`.
    """
    inside = offsets[:, 0] < offsets[:, 1]
    longest = np.bincount(window).max(initial=1)
    begins, width = np.flatnonzero(inside), max(1, min(max_answer, int(longest)))
    reach = begins[:, None] + np.arange(width)
    ends = np.minimum(reach, len(logits) - 1)
    fits = (reach == ends) & inside[ends] & (window[ends] == window[begins, None])
    scores = np.where(fits, logits[begins, None, 0].astype(np.float64) + logits[ends, 1], -np.inf).reshape(-1)
    nothing = float(null.min()) if no_answer else -np.inf
    most = max(nothing, scores.max(initial=-np.inf))
    if most == -np.inf:  # a context without a token
        return Best(None, 1.0)
    total = np.exp(scores - most).sum() + np.exp(nothing - most)
    best = int(scores.argmax()) if len(scores) else -1
    if best < 0 or scores[best] < nothing:
        return Best(None, float(np.exp(nothing - most) / total))
    first, last = begins[best // width], ends[best // width, best % width]
    return Best((int(offsets[first, 0]), int(offsets[last, 1])), float(np.exp(scores[best] - most) / total))
