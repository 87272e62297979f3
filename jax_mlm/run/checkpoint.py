"""Save and load through Orbax: asynchronously, keeping both the newest checkpoint and the best."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jax_mlm.errors import UserError
from jax_mlm.model.encoder import Params
from jax_mlm.run.directory import CHECKPOINTS as FOLDER

State = TypeVar("State")


class Meta(TypedDict):
    """What a checkpoint records besides the arrays."""

    step: int
    elapsed: float
    """Seconds since the end of the compilation, over all resumptions."""
    horizon: int
    """The last step, as far as it was known then."""


def open_checkpoints(run: Path) -> ocp.CheckpointManager:
    """Open the run's checkpoints, for saving and resuming.

    The preservation policy names both ends: `best_fn` with `max_to_keep` would delete the newest unless it is the best.
    """
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(1),
            policies.BestN(
                get_metric_fn=lambda m: m["loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep, best_fn=lambda m: m["loss"], best_mode="min", cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager((run / FOLDER).absolute(), options=options)


def save(manager: ocp.CheckpointManager, state: object, meta: Meta, loss: float | None) -> None:
    """Start saving; `meta` is small JSON beside the arrays, `loss` (None: not measured) decides which is the best."""
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    with _without_warnings():
        manager.save(int(meta["step"]), args=args, metrics=None if loss is None else {"loss": loss})


def restore(manager: ocp.CheckpointManager, like: State) -> tuple[State, Meta] | None:
    """Return the newest state and its meta, or None before the first save; `like` gives shapes, types and shardings."""
    step = manager.latest_step()
    if step is None:
        return None
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
    restored = manager.restore(step, args=args)
    return restored["state"], restored["meta"]


def has_checkpoint(run: Path) -> bool:
    """Return whether the run has a finished checkpoint, without opening Orbax."""
    return any(folder.name.isdecimal() for folder in (run / FOLDER).glob("*"))


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Orbax's warnings about what is intended (a checkpoint without a loss, reading only)."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _reading(run: Path) -> Iterator[ocp.CheckpointManager]:
    """Open the run's checkpoints, read only."""
    if not (run / FOLDER).is_dir():
        raise UserError(f"{run} holds no checkpoint: train it first (python -m jax_mlm.train --out {run})")
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    with _without_warnings():
        options = ocp.CheckpointManagerOptions(read_only=True, best_fn=lambda m: m["loss"], best_mode="min")
        with ocp.CheckpointManager((run / FOLDER).absolute(), item_handlers=handlers, options=options) as manager:
            if manager.latest_step() is None:
                raise UserError(f"{run / FOLDER} holds no finished checkpoint")
            yield manager


def load_params(run: Path, which: Literal["best", "latest"] | int = "latest") -> tuple[int, Params]:
    """Return the step chosen, and its parameters as nested dicts of float32 numpy arrays.

    The best is the one with the lowest validation loss; the newest if none was measured.
    """
    with _reading(run) as manager:
        chosen = which if isinstance(which, int) else manager.best_step() if which == "best" else None
        chosen = manager.latest_step() if chosen is None else chosen
        if chosen is None or chosen not in manager.all_steps():
            raise UserError(f"{run} has no checkpoint of step {chosen}: it has {sorted(manager.all_steps())}")
        like = manager.item_metadata(chosen)["state"].tree
        cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        item = jax.tree.map(lambda _: ocp.PLACEHOLDER, like)
        item["params"] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like["params"])
        restore_args = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=cpu), like)
        arguments = ocp.args.PyTreeRestore(item, restore_args=restore_args)
        restored = manager.restore(chosen, args=ocp.args.Composite(state=arguments))
    return chosen, jax.tree.map(np.asarray, restored["state"]["params"])
