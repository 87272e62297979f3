"""Held-out loss and accuracy under fixed masks, as sums over targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Int

from jax_mlm.data.batches import Batch, Rows, batch_of
from jax_mlm.model.encoder import Params
from jax_mlm.tasks.metrics import Metrics


@dataclass(frozen=True)
class Result:
    """Sums over targets, in float64 on the host."""

    loss_sum: float
    correct: float
    count: float

    def __add__(self, other: Result) -> Result:
        return Result(self.loss_sum + other.loss_sum, self.correct + other.correct, self.count + other.count)

    def figures(self) -> dict[str, float]:
        """Return what the log keeps."""
        return {"loss": self.loss, "accuracy": self.accuracy}

    def rank(self, step: int) -> float:
        """Return what checkpoints are compared by: the one with the lowest is the best."""
        del step
        return self.loss

    @property
    def loss(self) -> float:
        return self.loss_sum / (self.count or 1.0)

    @property
    def accuracy(self) -> float:
        return self.correct / (self.count or 1.0)


def result_of(metrics: Metrics) -> Result:
    """Return the sums on the host, once the device has computed them."""
    return Result(*map(float, jax.device_get((metrics.loss_sum, metrics.correct, metrics.count))))


def evaluate_rows(
    examine: Callable[[Params, Batch], Metrics],
    params: Params,
    rows: Rows,
    indices: np.ndarray,
    batch: int,
    place: Callable[[Batch], Batch] = lambda batch: batch,
    shard: tuple[int, int] = (0, 1),
) -> Result:
    """Return sums over the given rows; a batch past their end is filled with padding, which weighs nothing.

    One batch is computed while the one before is added up; `shard` is this host's (index, count).
    """
    total, pending = Result(0.0, 0.0, 0.0), None
    part = batch // shard[1]
    for start in range(0, len(indices), batch):
        mine = indices[start : start + batch][shard[0] * part : (shard[0] + 1) * part]
        padded = np.full(part, len(rows), np.int64)
        padded[: len(mine)] = mine
        metrics = examine(params, place(batch_of(rows, padded)))
        if pending is not None:
            total += result_of(pending)
        pending = metrics
    return total if pending is None else total + result_of(pending)


def evenly_spaced(total: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `wanted` of `total` row numbers, evenly spaced (all if 0), and the remaining ones."""
    count = total if wanted <= 0 else min(wanted, total)
    chosen = np.arange(count) * total // count
    return chosen, np.setdiff1d(np.arange(total), chosen)


class Validates(Protocol):
    """What measures a run: on a part of the validation while it trains, and on the rest once, at the end."""

    def __call__(self, params: Params) -> Result: ...

    def rest(self, params: Params) -> Result: ...

    def final_over_periodic(self) -> float: ...


@dataclass(frozen=True)
class Validator:
    """Validation of a run: on a part of the rows while it trains, and on the rest once, at the end."""

    examine: Callable[[Params, Batch], Metrics]
    """Compiled for `batch` rows."""
    rows: Rows
    batch: int
    wanted: int
    """Number of rows in the part; 0 takes all."""
    place: Callable[[Batch], Batch]
    shard: tuple[int, int]

    def __call__(self, params: Params) -> Result:
        """Measure the part."""
        return self._over(params, evenly_spaced(len(self.rows), self.wanted)[0])

    def rest(self, params: Params) -> Result:
        """Measure the rows that are not in the part."""
        return self._over(params, evenly_spaced(len(self.rows), self.wanted)[1])

    def final_over_periodic(self) -> float:
        """Return the size of the last validation, which covers every row, relative to that of the others."""
        return len(self.rows) / len(evenly_spaced(len(self.rows), self.wanted)[0])

    def _over(self, params: Params, indices: np.ndarray) -> Result:
        return evaluate_rows(self.examine, params, self.rows, indices, self.batch, self.place, self.shard)


def unigram_baseline(train_counts: Int[np.ndarray, " V"], valid_counts: Int[np.ndarray, " V"]) -> tuple[float, float]:
    """Return loss (nats) and accuracy of guessing by frequency in the training text, one added to each count."""
    smoothed = train_counts + 1.0
    log_p = np.log(smoothed / smoothed.sum())
    total = max(valid_counts.sum(), 1)
    return float(-(valid_counts * log_p).sum() / total), float(valid_counts[smoothed.argmax()] / total)
