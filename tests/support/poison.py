"""Steps whose loss goes wrong, put into a training from outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jax_mlm.data.batches import Batch
from jax_mlm.tasks.task import Task
from jax_mlm.train import program, setup

NAN, SPIKE = 1 << 20, 1 << 21
"""What is added to the numbers of a batch's rows: its objective becomes NaN, its loss a spike."""


@cache
def poisonable(task: Task[Any]) -> Task[Any]:
    """Return the task with an objective that is NaN, or a loss that is 50 times as large, in batches marked for it."""

    def loss(params: Any, frozen: Any, example: Any, keys: Any) -> Any:
        total, metrics = task.loss(params, frozen, example, keys)
        rows = jnp.asarray(getattr(example, "batch", example).rows)
        spike = jnp.where((rows >= SPIKE).any(), 50.0, 1.0)
        nan = jnp.where(((rows >= NAN) & (rows < SPIKE)).any(), jnp.nan, 1.0)
        return total * spike * nan, metrics._replace(loss_sum=metrics.loss_sum * spike)

    return replace(task, loss=loss)


def marked(batch: Batch, kind: int) -> Batch:
    """Return a batch with its last row marked: one device of several holds it."""
    rows = np.array(batch.rows)
    rows[-1] += kind
    return batch._replace(rows=rows)


def poison(patch: pytest.MonkeyPatch, kind_at: Callable[[int, int], int]) -> None:
    """Mark batches of the runs that follow; `kind_at(step, order)` is NAN, SPIKE or 0."""
    before, make = program.batch_at, setup.masked_lm

    def batch_at(rows: Any, step: int, seed: int, *more: Any) -> Batch:
        batch, kind = before(rows, step, seed, *more), kind_at(step, seed >> 32)
        return marked(batch, kind) if kind else batch

    patch.setattr(program, "batch_at", batch_at)
    patch.setattr(setup, "masked_lm", lambda *arguments: poisonable(make(*arguments)))
