"""`Classify` and `Tag`: what a fine-tuned model says of a text or of its words, from a bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypedDict, overload

import numpy as np

from mlm_onnx.answer.engine import Engine, checked, log_softmax
from mlm_onnx.answer.queries import listed, read_all
from mlm_onnx.answer.windows import Span, Texts, WindowReader, Words
from mlm_onnx.bundle.layout import ANSWER, CLASSIFY, TAG, QueryError
from mlm_onnx.bundle.read import Bundle, opened

OUTSIDE = "O"
LIKELY = 0.5
"""A model of several labels predicts those above this probability."""


class Label(TypedDict):
    """One of the labels that the model knows."""

    label: str
    probability: float


class Classified(TypedDict, total=False):
    """What `Classify` returns for a text: one label, or several of them, or a number."""

    text: str
    pair: str
    """The second text, where two are judged together."""
    label: str
    """The likeliest label."""
    probability: float
    """The probability of that label."""
    predicted: list[str]
    """The labels that are likelier than not, if the model gives several."""
    labels: list[Label]
    """Every label, the likeliest first."""
    value: float
    """The number, if the model gives one."""
    left_out: int
    """Tokens of the first text of a pair that no window has room for; absent if it was read whole."""


class Entity(TypedDict):
    """A part of a text with its type: `text[start:end]`, in code points."""

    label: str
    start: int
    end: int
    text: str
    probability: float
    """Mean probability of the tags of its words."""


class Tagged(TypedDict):
    """What `Tag` returns for a text."""

    text: str
    entities: list[Entity]


class Predictor:
    """What all predictors of fine-tuned models have in common."""

    task: str
    outputs: int | None = None
    """Logits at a position, if they are not those of the labels."""

    def __init__(self, path: str | os.PathLike[str] | Bundle, threads: int | None = None) -> None:
        self.bundle = opened(path, self.task)
        try:
            self.head = self.bundle.head()
        except BaseException:
            self.bundle.settle()
            raise
        outputs = self.outputs or len(self.head.labels) or 1
        self._engine = Engine(self.bundle, checked(threads), outputs, self.head.types)
        try:
            self.reader = WindowReader(self.bundle, self.head, self.head.pair or self.task == ANSWER)
        finally:
            self._engine.wait()

    def __reduce__(self) -> tuple[type[Predictor], tuple[str, int]]:
        """Pickle the path and the number of threads, so that a predictor can be passed to other processes."""
        return type(self), (str(self.bundle.path.absolute()), self._engine.threads)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels in the order of the logits; none of a number."""
        return self.head.labels


Text = str | tuple[str, str]


class Classify(Predictor):
    """`Classify("BUNDLE")("a text")` → {"text", "label", "probability", "labels": [{"label", "probability"}]}.

    A model of pairs takes tuples of two texts. A text that is longer than the model's window is read in windows, whose
    logits are averaged, weighted by their tokens. Threads may share a predictor.

    Args:
        path: a bundle's folder, or a bundle that `open_bundle` returned.
        threads: how many to compute with (default: the number of cores, up to four).

    Raises:
        BundleError: the folder is not a sound bundle of a model that classifies.
    """

    task = CLASSIFY

    @overload
    def __call__(self, text: Text, top_k: int | None = None) -> Classified: ...
    @overload
    def __call__(self, text: Sequence[Text], top_k: int | None = None) -> list[Classified]: ...
    def __call__(self, text: Text | Sequence[Text], top_k: int | None = None) -> Classified | list[Classified]:
        """Return the label of a text, or of each of several.

        Args:
            top_k: how many labels to list (default: all).

        Raises:
            QueryError: a text is not what the model judges, or exceeds a limit.
        """
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise QueryError(f"top_k must be an integer of at least 1, not {top_k!r}")
        given = listed(text, self.bundle.limits, (str, tuple))
        read = read_all(given, self._read)
        windows = [(which, part) for which, each in enumerate(read) for part in each.parts]
        logits = np.zeros((len(read), self._engine.outputs), np.float32)
        found = self._engine.map([part.row for _, part in windows], lambda _, row: row.copy())
        for (which, part), row in zip(windows, found, strict=True):
            logits[which] += row * np.float32(part.share)
        answers = [self._answer(*each, top_k) for each in zip(given, read, logits, strict=True)]
        return answers[0] if isinstance(text, str | tuple) else answers

    def once(self) -> None:
        """Answer one short text."""
        self(("a", "a") if self.head.pair else "a")

    def _read(self, text: Text) -> Texts:
        if self.head.pair != isinstance(text, tuple):
            judged = "pairs of texts: give (text, pair)" if self.head.pair else "one text, not pairs"
            raise QueryError(f"the model judges {judged}")
        if isinstance(text, str):
            return self.reader.texts(text)
        if len(text) != 2 or not all(isinstance(each, str) for each in text):
            raise QueryError("a pair is a tuple of two texts")
        return self.reader.texts(*text)

    def _answer(self, given: Text, read: Texts, logits: np.ndarray, top_k: int | None) -> Classified:
        answer: Classified = {"text": given} if isinstance(given, str) else {"text": given[0], "pair": given[1]}
        if read.left_out:
            answer["left_out"] = read.left_out
        if self.head.problem == "regression":
            answer["value"] = float(logits[0])
            return answer
        exact = logits.astype(np.float64)
        several = self.head.problem == "multi"
        chances = 1 / (1 + np.exp(-exact)) if several else np.exp(log_softmax(exact))
        ranked = np.argsort(-chances, kind="stable")
        labels: list[Label] = [{"label": self.labels[i], "probability": float(chances[i])} for i in ranked.tolist()]
        if several:
            answer["predicted"] = [each["label"] for each in labels if each["probability"] > LIKELY]
        else:
            answer |= {"label": labels[0]["label"], "probability": labels[0]["probability"]}
        answer["labels"] = labels[:top_k]
        return answer


class Tag(Predictor):
    """`Tag("BUNDLE")("a text")` → {"text", "entities": [{"label", "start", "end", "text", "probability"}]}.

    `text[start:end]` of an entity is its "text"; offsets are code points. The tag of a word is that of its first token.
    A text that is longer than the model's window is read in windows, and each word where it is farthest from an edge.

    Args and errors are those of `Classify`.
    """

    task = TAG

    @overload  # a str is also a Sequence[str]; the first that matches wins
    def __call__(self, text: str) -> Tagged: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, text: Sequence[str]) -> list[Tagged]: ...
    def __call__(self, text: str | Sequence[str]) -> Tagged | list[Tagged]:
        """Return the entities in a text, or in each of several."""
        given = listed(text, self.bundle.limits)
        read = read_all(given, self.reader.words)
        rows = [row for each in read for row in each.rows]
        found = iter(self._engine.map(rows, lambda _, logits: logits.copy()))
        answers: list[Tagged] = []
        for each, words in zip(given, read, strict=True):
            logits = [next(found) for _ in words.rows]
            answers.append({"text": each, "entities": self._entities(each, words, logits)})
        return answers[0] if isinstance(text, str) else answers

    def once(self) -> None:
        """Answer one short text."""
        self("a")

    def _entities(self, text: str, words: Words, logits: Sequence[np.ndarray]) -> list[Entity]:
        if not words.order:
            return []
        in_order = np.empty((len(words.order), self._engine.outputs))
        in_order[words.order] = np.concatenate(logits)
        best, chances = in_order.argmax(-1), np.exp(log_softmax(in_order)).max(-1)
        found: list[Entity] = []
        for first, end, kind in entities_of([self.labels[i] for i in best.tolist()]):
            span = Span(words.spans[first].start, words.spans[end - 1].end)
            found.append(
                {
                    "label": kind,
                    "start": span.start,
                    "end": span.end,
                    "text": text[span.start : span.end],
                    "probability": float(chances[first:end].mean()),
                }
            )
        return found


def entities_of(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (first, end, type) of each entity of IOB2 tags; an I- that continues none begins one (conlleval)."""
    found: list[tuple[int, int, str]] = []
    for at, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        if tag == OUTSIDE:
            continue
        if letter == "I" and found and found[-1][1] == at and found[-1][2] == kind:
            found[-1] = (found[-1][0], at + 1, kind)
        else:
            found.append((at, at + 1, kind))
    return found
