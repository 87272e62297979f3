"""What a task is measured by, in numpy: equal to scikit-learn, scipy and seqeval, which only tests need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jax_mlm.data.conll import entities_of, strict_entities_of

MODES: Mapping[str, Literal["max", "min"]] = {
    **dict.fromkeys(("accuracy", "f1", "macro_f1", "micro_f1", "mcc", "pearson", "spearman", "conlleval_f1"), "max"),
    "exact": "max",
    **dict.fromkeys(("loss", "rmse"), "min"),
}
"""Metric → whether its largest or its smallest value is the best."""
Entities = Callable[[Iterable[str]], list[tuple[int, int, str]]]


class PerLabel(NamedTuple):
    """The scores of one label; 0 where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float
    support: int
    """How often it is right."""


class Scores(NamedTuple):
    """The figures of a set of examples."""

    figures: dict[str, float]
    per_label: dict[str, PerLabel] = {}  # noqa: RUF012
    confusion: tuple[tuple[int, ...], ...] = ()
    """[right label][predicted label], in the order of the labels; empty where an example may have several."""


def per_label(hits: int, predicted: int, right: int) -> PerLabel:
    """Return precision, recall and F1 of counts."""
    return PerLabel(
        hits / predicted if predicted else 0.0,
        hits / right if right else 0.0,
        2 * hits / (predicted + right) if predicted + right else 0.0,
        right,
    )


def of_one_label(right: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> Scores:
    """Return the scores of predictions [N] of one label each; means over labels take all of `labels`."""
    K = len(labels)
    confusion = np.bincount(right * K + predicted, minlength=K * K).reshape(K, K)
    table = _table(confusion.diagonal(), confusion.sum(0), confusion.sum(1), labels)
    figures = {
        "accuracy": float((right == predicted).mean()),
        "macro_f1": float(np.mean([scores.f1 for scores in table.values()])),
        "mcc": matthews(confusion),
    }
    if K == 2:
        figures["f1"] = table[labels[1]].f1
    return Scores(figures, table, tuple(tuple(map(int, row)) for row in confusion))


def of_several_labels(right: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> Scores:
    """Return the scores of predictions [N, K] of 0 and 1; accuracy is the share of texts that are right in all."""
    right, predicted = right.astype(bool), predicted.astype(bool)
    hits, guesses, truths = (right & predicted).sum(0), predicted.sum(0), right.sum(0)
    table = _table(hits, guesses, truths, labels)
    figures = {
        "accuracy": float((right == predicted).all(-1).mean()),
        "micro_f1": per_label(int(hits.sum()), int(guesses.sum()), int(truths.sum())).f1,
        "macro_f1": float(np.mean([scores.f1 for scores in table.values()])),
    }
    return Scores(figures, table)


def _table(hits: np.ndarray, guesses: np.ndarray, truths: np.ndarray, labels: Sequence[str]) -> dict[str, PerLabel]:
    counts = zip(hits.tolist(), guesses.tolist(), truths.tolist(), strict=True)
    return {label: per_label(*count) for label, count in zip(labels, counts, strict=True)}


def matthews(confusion: np.ndarray) -> float:
    """Return Matthews' correlation for any number of labels (Gorodkin 2004); 0 where one side is constant."""
    counts = confusion.astype(np.float64)
    right, predicted, total = counts.sum(1), counts.sum(0), counts.sum()
    covariance = counts.trace() * total - right @ predicted
    spread = (total**2 - right @ right) * (total**2 - predicted @ predicted)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def of_numbers(right: np.ndarray, predicted: np.ndarray) -> Scores:
    """Return Pearson's and Spearman's correlation, and the root of the mean squared error."""
    right, predicted = right.astype(np.float64), predicted.astype(np.float64)
    return Scores(
        {
            "pearson": pearson(right, predicted),
            "spearman": pearson(ranks(right), ranks(predicted)),
            "rmse": float(np.sqrt(np.square(right - predicted).mean())),
        }
    )


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return the correlation of two rows of numbers; 0 where one is constant."""
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(np.clip((x @ y) / spread, -1, 1)) if spread > 0 else 0.0


def ranks(x: np.ndarray) -> np.ndarray:
    """Return the rank of each number, from 1; equal ones share the mean of theirs."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse.reshape(-1)]


def of_entities(right: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Scores:
    """Return the scores of tags, a sequence for each text: an entity is right if its words and its type are.

    `f1` reads tags strictly as IOB2, `conlleval_f1` as the script of CoNLL does: see `data/conll.py`.
    """
    hits, guesses, truths = _counted(right, predicted, strict_entities_of)
    kinds = sorted(guesses.keys() | truths.keys())
    table = {kind: per_label(hits[kind], guesses[kind], truths[kind]) for kind in kinds}
    whole = per_label(hits.total(), guesses.total(), truths.total())
    loose = per_label(*(counts.total() for counts in _counted(right, predicted, entities_of)))
    words = [(a, b) for x, y in zip(right, predicted, strict=True) for a, b in zip(x, y, strict=True)]
    figures = {
        "precision": whole.precision,
        "recall": whole.recall,
        "f1": whole.f1,
        "macro_f1": float(np.mean([scores.f1 for scores in table.values()])) if table else 0.0,
        "conlleval_f1": loose.f1,
        "accuracy": sum(a == b for a, b in words) / max(len(words), 1),
    }
    return Scores(figures, table)


def _counted(
    right: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], entities: Entities
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Count, for each type, entities that are found, predicted and right."""
    hits: Counter[str] = Counter()
    guesses: Counter[str] = Counter()
    truths: Counter[str] = Counter()
    for x, y in zip(right, predicted, strict=True):
        theirs, ours = entities(x), entities(y)
        truths.update(kind for _, _, kind in theirs)
        guesses.update(kind for _, _, kind in ours)
        hits.update(kind for _, _, kind in set(theirs) & set(ours))
    return hits, guesses, truths
