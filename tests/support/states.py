"""Small states, and runs that saved some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jax_mlm.run.checkpoint import Meta, open_checkpoints, save
from jax_mlm.train.step import TrainState


def state(step: int, rows: int = 300) -> TrainState:
    """Return a state of 512 bytes a row that does not compress; with 300 its files count as large."""
    kernel = np.random.default_rng(step).normal(size=(rows, 64)).astype(np.float32)
    params = {"dense": {"kernel": jnp.asarray(kernel)}}
    return TrainState(jnp.int32(step), params, {"mu": params})


def meta(step: int) -> Meta:
    return {"step": step, "elapsed": 0.5 * step, "horizon": 9}


def saved(run: Path, losses: Sequence[float | None]) -> Path:
    """Write a run's checkpoints, one for each loss, of the steps 1, 2, …"""
    run.mkdir(exist_ok=True)
    with open_checkpoints(run) as manager:
        for step, loss in enumerate(losses, 1):
            save(manager, state(step), meta(step), loss)
    return run
