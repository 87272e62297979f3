"""Find answers in contexts: the loss of their first and last tokens, the best span of all windows, and its scores."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_mlm.data.labelled import LabelledBatch
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.tasks.scores import Scores

QUANTILE = 0.999
"""Part of the answers to learn that are no longer than the longest answer given."""


def longest_answer(sizes: np.ndarray) -> int:
    """Return how many tokens an answer may have, from those [examples] of the answers to learn; 0 stands for none."""
    found = sizes[sizes > 0]
    return int(np.quantile(found, QUANTILE, method="higher")) if len(found) else 1


# ---- learning ------------------------------------------------------------------------------------


def span_metrics(logits: Float[Array, "B S 2"], batch: LabelledBatch) -> Metrics:
    """Return sums over windows: each loss is the mean of the cross-entropies of the first and the last token.

    The probabilities are those over the positions of the window alone, whatever else is in its row. `correct` counts
    windows of which both are ranked first.
    """
    segments, at, weights = (jnp.asarray(each) for each in (batch.segments, batch.at, batch.weights))
    same = segments[:, None, :] == jnp.take_along_axis(segments, at, axis=1)[..., None]
    of_window = jnp.where(same[..., None], logits[:, None], -jnp.inf)  # [B, P, S, 2]
    targets = at[..., None] + jnp.asarray(batch.targets)
    chosen = jnp.take_along_axis(logits, targets, axis=1)  # [B, P, 2]
    loss = (jax.nn.logsumexp(of_window, axis=2) - chosen).mean(-1)
    right = (chosen >= of_window.max(2)).all(-1)
    return Metrics((loss * weights).sum(), (right * weights).sum(), weights.sum())


def window_losses(logits: np.ndarray, first: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the same loss of each window, of the logits [tokens, 2] of windows that begin at `first`."""
    total = np.logaddexp.reduceat(logits.astype(np.float64), first[:-1])
    return (total - logits[first[:-1, None] + targets, [0, 1]]).mean(-1)


# ---- answering -----------------------------------------------------------------------------------


class Found(NamedTuple):
    """The answer to a question."""

    span: tuple[int, int] | None
    """Where it stands in the context, in code points; None for no answer."""
    probability: float


def best_answer(
    start: np.ndarray,
    end: np.ndarray,
    window: np.ndarray,
    offsets: np.ndarray,
    inside: np.ndarray,
    null: np.ndarray,
    max_answer: int,
    no_answer: bool,
) -> Found:
    """Return the best answer to one question over all windows of its context.

    A candidate is a first and a last token of one window, both inside the context, the last one not before the first,
    `max_answer` tokens at most. Its score is the sum of the two logits. Where questions may have no answer, that is one
    more candidate, whose score is the lowest of `null`. The probability is the candidate's share in ONE softmax over
    all candidates of all windows; a span that stands in two windows is two candidates. Of equal scores the candidate
    of the earlier token wins, and any span over no answer.

    Args:
        start: [tokens] logits of the first token of an answer, all windows one after the other.
        end: [tokens] logits of its last token.
        window: [tokens] number of the window.
        offsets: [tokens, 2] where each token begins and ends in the context.
        inside: [tokens] whether an answer may begin or end here.
        null: [windows] sum of both logits at the first special token of each window.
        max_answer: most tokens of an answer.
        no_answer: whether a question may have no answer.
    """
    begins = np.flatnonzero(inside)
    longest = np.unique(window, return_counts=True)[1].max(initial=1)
    width = max(1, min(max_answer, int(longest)))
    reach = begins[:, None] + np.arange(width)
    ends = np.minimum(reach, len(start) - 1)
    fits = (reach == ends) & inside[ends] & (window[ends] == window[begins, None])
    scores = np.where(fits, start[begins, None].astype(np.float64) + end[ends], -np.inf).reshape(-1)
    nothing = float(null.min()) if no_answer else -np.inf
    most = max(nothing, scores.max(initial=-np.inf))
    if most == -np.inf:  # a context without a token
        return Found(None, 1.0)
    total = np.exp(scores - most).sum() + np.exp(nothing - most)
    best = int(scores.argmax()) if len(scores) else -1
    if best < 0 or scores[best] < nothing:
        return Found(None, float(np.exp(nothing - most) / total))
    first, last = begins[best // width], ends[best // width, best % width]
    return Found((int(offsets[first, 0]), int(offsets[last, 1])), float(np.exp(scores[best] - most) / total))


# ---- scores --------------------------------------------------------------------------------------

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return an answer as SQuAD compares it: lower case, no ASCII punctuation or English articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(right: str, predicted: str) -> float:
    """Return 1 if two answers are equal once normalised, else 0."""
    return float(normalised(right) == normalised(predicted))


def f1(right: str, predicted: str) -> float:
    """Return the F1 of the words of a predicted answer; 1 or 0 where one of the two has none."""
    theirs, ours = normalised(right).split(), normalised(predicted).split()
    if not theirs or not ours:
        return float(theirs == ours)
    hits = (Counter(theirs) & Counter(ours)).total()
    return 2 * hits / (len(theirs) + len(ours))


class Agreement(NamedTuple):
    """How well a predicted answer agrees with the reference that it agrees with best."""

    exact: float
    f1: float


def agreement(references: Sequence[str], predicted: str) -> Agreement:
    """Compare an answer with its references, as the script of SQuAD 2.0 does; no answer is the empty text.

    References of articles and punctuation alone do not count; without any other, "no answer" is right.
    """
    right = [text for text in references if normalised(text)] or [""]
    return Agreement(max(exact(text, predicted) for text in right), max(f1(text, predicted) for text in right))


def of_answers(references: Sequence[Sequence[str]], predicted: Sequence[str]) -> Scores:
    """Return the means over questions; where some have an answer and others none, F1 of each kind as well."""
    each = [agreement(right, text) for right, text in zip(references, predicted, strict=True)]
    figures = {"exact": float(np.mean([one.exact for one in each])), "f1": float(np.mean([one.f1 for one in each]))}
    answered = np.array([bool(right) for right in references])
    if answered.any() and not answered.all():
        f1s = np.array([one.f1 for one in each])
        figures |= {"f1_with_answer": float(f1s[answered].mean()), "f1_without_answer": float(f1s[~answered].mean())}
    return Scores(figures)
