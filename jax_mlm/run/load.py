"""Load a trained model back into memory: `load(RUN)`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

from jax_mlm.config import TrainConfig
from jax_mlm.model.encoder import Params
from jax_mlm.model.heads import Forward, make_forward
from jax_mlm.model.task_heads import make_task_forward
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run, read_task


class Trained(NamedTuple):
    """A trained model."""

    config: TrainConfig
    params: Params
    """Nested dicts of float32 numpy arrays."""
    forward: Forward
    """`forward(params, Inputs(tokens, segments, positions), at)` → logits [B, P, V], computed in float32.

    V are the labels of a run that was fine-tuned, in the order of `read_task(run)`; of one that answers questions, the
    logits of the first and the last token of an answer. Token types [B, S] of pairs are one more argument.
    """
    step: int
    """The step of the checkpoint that the parameters come from."""


def load(run: str | os.PathLike[str], checkpoint: Literal["best", "latest"] | int = "best") -> Trained:
    """Load a run's configuration, the parameters of one of its checkpoints, and the model as a pure function.

    Raises:
        UserError: `run` is not a run directory, or has no such checkpoint.
    """
    config = read_run(Path(run))
    step, params = load_params(Path(run), checkpoint)
    task = read_task(Path(run))
    forward = make_forward(config.model) if task is None else make_task_forward(config.model, task)
    return Trained(config, params, forward, step)
