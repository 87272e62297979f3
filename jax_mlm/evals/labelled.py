"""Measure a fine-tuned model: the logits of every item, put together from its windows, and the scores they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jax_mlm.config import TaskConfig
from jax_mlm.data.batches import batch_of
from jax_mlm.data.labelled import LabelledBatch, LabelledRows
from jax_mlm.data.packing import ragged
from jax_mlm.evals.heldout import Result
from jax_mlm.model.encoder import Params
from jax_mlm.tasks.scores import MODES, Scores

Logits = Callable[[Params, LabelledBatch], jax.Array]


@dataclass(frozen=True)
class Scored(Result):
    """Loss and accuracy as sums, and the scores of the task."""

    scores: Mapping[str, float] = field(default_factory=dict)
    metric: str = "loss"

    def figures(self) -> dict[str, float]:
        """Return what the log keeps: the metric that chooses, then the others."""
        every = {"loss": self.loss, **self.scores}
        return {self.metric: every[self.metric], **every}

    def rank(self, step: int) -> float:
        """Return what checkpoints are compared by; of equal ones the earlier is the better."""
        return best_first(self.figures(), self.metric) + 1e-12 * step

    def __add__(self, other: Result) -> Scored:
        """Return these scores: the rest of the rows is empty, as every validation covers all."""
        assert not other.count
        return self


def best_first(figures: Mapping[str, float], metric: str) -> float:
    """Return a number that is the lower, the better the figures are."""
    return figures[metric] if MODES[metric] == "min" else -figures[metric]


def item_logits(
    logits: Logits, params: Params, rows: LabelledRows, task: TaskConfig, batch: int, place: Callable[[Any], Any]
) -> np.ndarray:
    """Return the logits [items, K]: those of a text in several windows are their mean, weighted by tokens.

    To find answers they are those of each token of the windows. One batch is computed while the one before is added up.
    """
    of_tokens, first = task.kind == "answer", rows.windows.first
    total = np.zeros((first[-1] if of_tokens else len(rows.targets), task.outputs), np.float32)
    pending: tuple[LabelledBatch, jax.Array] | None = None

    def add(computed: tuple[LabelledBatch, jax.Array]) -> None:
        part, values = computed
        used = np.asarray(part.items) >= 0
        items = np.asarray(part.items)[used]
        if of_tokens:  # a row holds its windows in the order of their slots
            sizes = np.diff(first)[items]
            total[np.repeat(first[items], sizes) + ragged(sizes)] = np.asarray(values)[np.asarray(part.segments) > 0]
            return
        shares = np.asarray(part.shares)[used][:, None]
        np.add.at(total, items, np.asarray(values)[used] * shares)

    for start in range(0, len(rows), batch):
        part = batch_of(rows, np.arange(start, start + batch))
        if pending is not None:
            add(pending)
        pending = part, logits(params, place(part))
    if pending is not None:
        add(pending)
    return total


@dataclass(frozen=True)
class TaskValidator:
    """Validation of a fine-tuning: all rows, each time."""

    logits: Logits
    """Compiled for `batch` rows."""
    rows: LabelledRows
    task: TaskConfig
    batch: int
    measure: Callable[[np.ndarray], tuple[Result, Scores]]
    """Logits of all items → their loss, and the scores."""
    place: Callable[[Any], Any]

    def __call__(self, params: Params) -> Scored:
        logits = item_logits(self.logits, params, self.rows, self.task, self.batch, self.place)
        loss, scores = self.measure(logits)
        return Scored(loss.loss_sum, loss.correct, loss.count, scores.figures, self.task.metric)

    def rest(self, params: Params) -> Result:
        """Return nothing: every validation covers all rows."""
        del params
        return Result(0.0, 0.0, 0.0)

    def final_over_periodic(self) -> float:
        return 1.0
