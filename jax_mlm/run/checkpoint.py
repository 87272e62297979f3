"""Save and load through Orbax: asynchronously, with checksums; the three newest checkpoints and the best are kept."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jax_mlm.errors import UserError, is_out_of_memory, warn
from jax_mlm.files import patience, set_aside
from jax_mlm.model.encoder import Params
from jax_mlm.run.directory import CHECKPOINTS as FOLDER
from jax_mlm.run.room import FAILED, lacking, not_saved, quiet, reason_of
from jax_mlm.run.sums import FORMAT, SEALED, SUMS, UNFINISHED, damage, seal

LATEST = 3
"""Newest checkpoints that are kept besides the best: it may be among them, and two more must be left."""
SMALL = 1 << 16
"""Bytes up to which files are read to find damage when a run is opened; its arrays are read when they are restored."""
State = TypeVar("State")


class Meta(TypedDict):
    """What a checkpoint records besides the arrays."""

    step: int
    elapsed: float
    """Seconds since the end of the compilation, over all resumptions."""
    horizon: int
    """The last step, as far as it was known then."""
    order: NotRequired[int]
    """Number of the order of the data and of the masks: 0, or 1 once the run has been rolled back."""
    good: NotRequired[int]
    """The newest step whose state was validated; absent from older checkpoints, which are good themselves."""
    skipped: NotRequired[int]
    """Updates skipped in a row until this step."""
    losses: NotRequired[list[float | None]]
    """Losses of the last steps, where spikes are skipped; null for one that is not finite."""


def open_checkpoints(run: Path, identity: Mapping[str, Any] | None = None) -> ocp.CheckpointManager:
    """Open the run's checkpoints, for saving and resuming; what is visibly damaged is set aside.

    `identity` is kept beside each checkpoint; what must not change between saves of a run can be read there.

    The preservation policy names both ends: `best_fn` with `max_to_keep` would delete the newest unless it is the best.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    folder = (run / FOLDER).absolute()
    if refusal := _on_first(lambda: _tidy(folder)):
        raise UserError(refusal)
    best = policies.BestN(get_metric_fn=lambda m: m["loss"], reverse=True, n=1, keep_checkpoints_without_metrics=False)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(LATEST), best]),
        best_fn=lambda m: m["loss"],
        best_mode="min",
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(
            post_finalization_callback=lambda: seal(folder, dict(identity or {})),
            create_directories_asynchronously=False,  # or, where that fails, what waits for them waits for minutes
        ),
    )
    return ocp.CheckpointManager(folder, options=options)


@contextmanager
def saving(run: Path, identity: Mapping[str, Any] | None = None) -> Iterator[ocp.CheckpointManager]:
    """Open the run's checkpoints while it trains; on leaving, wait for the save under way."""
    with quiet():
        manager = open_checkpoints(run, identity)
        try:
            yield manager
        finally:
            settle(manager)
            manager.close()
            _clear(manager)  # a thread of a failed save may have gone on


def settle(manager: ocp.CheckpointManager) -> None:
    """Wait for the save under way; if it fails, one line says so."""
    step, reason = _settle(manager)
    if reason:
        warn(f"step {step} could not be saved in {manager.directory} ({reason})")


def save(manager: ocp.CheckpointManager, state: object, meta: Meta, loss: float | None) -> None:
    """Start saving; `meta` is small JSON beside the arrays, `loss` (None: not measured) decides which is the best.

    If there is no room, or the save before has failed, one line says so and the run goes on.
    """
    folder = Path(manager.directory)
    step, reason = _settle(manager)
    if reason:
        warn(f"{not_saved(folder, step, reason, state)}; the run goes on and tries again now")
    if reason := _begin(manager, state, meta, loss):
        warn(f"{not_saved(folder, meta['step'], reason, state)}; the run goes on and tries again at the next save")


def save_last(manager: ocp.CheckpointManager, state: object, meta: Meta, loss: float | None) -> None:
    """Save the last state unless that was done, and wait until it is on disk.

    Raises:
        UserError: it cannot be saved; the line names the last good checkpoint.
    """
    step, reason = _settle(manager)
    if reason and step != meta["step"]:
        warn(f"{not_saved(Path(manager.directory), step, reason, state)}; the run goes on and tries again now")
    if manager.latest_step() != meta["step"]:
        reason = _begin(manager, state, meta, loss) or _settle(manager)[1]
    if manager.latest_step() != meta["step"]:
        folder, step = Path(manager.directory), manager.latest_step()
        last = "there is no checkpoint before it" if step is None else f"the last good checkpoint is of step {step}"
        raise UserError(
            f"{not_saved(folder, meta['step'], reason, state)}; {last}: make room there, and continue with "
            f"python -m jax_mlm.train --resume --out {folder.parent}"
        )


def _begin(manager: ocp.CheckpointManager, state: object, meta: Meta, loss: float | None) -> str:
    """Start a save; return why that was not possible, or an empty string."""
    folder = Path(manager.directory)
    if reason := _on_first(lambda: lacking(folder, state)):  # or half of it would be written first
        return reason
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({**meta, SEALED: FORMAT}))
    try:
        with quiet():
            manager.save(int(meta["step"]), args=args, metrics=None if loss is None else {"loss": loss})
    except FAILED as error:
        return _abandon(manager, error)
    return ""


def _settle(manager: ocp.CheckpointManager) -> tuple[int | None, str]:
    """Wait for the save under way; return its step and why it failed, or an empty string."""
    step = manager.latest_step()
    try:
        with patience(f"saving step {step} in {manager.directory}"):
            manager.wait_until_finished()
    except FAILED as error:
        return step, _abandon(manager, error)
    return step, ""


def _abandon(manager: ocp.CheckpointManager, error: Exception) -> str:
    """Remove what a failed save left, and return why it failed; several hosts end, as they cannot agree any more."""
    if jax.process_count() > 1:
        raise UserError(f"saving in {manager.directory} failed: {reason_of(error)}") from error
    writer: Any = manager._checkpointer
    for _ in range(2):  # the manager stops waiting at a first failure, and the next save would raise the second
        with suppress(*FAILED):
            writer.wait_until_finished()
    _clear(manager)
    manager.reload()
    return reason_of(error)


def _clear(manager: ocp.CheckpointManager) -> None:
    """Remove what failed saves left."""
    if jax.process_index() == 0:
        for folder in Path(manager.directory).glob(UNFINISHED):
            shutil.rmtree(folder, ignore_errors=True)


def restore(manager: ocp.CheckpointManager, like: State, last: int | None = None) -> tuple[State, Meta] | None:
    """Return the newest sound state, of step `last` at most, and its meta; None before the first save.

    `like` gives shapes, types and shardings. Damaged checkpoints that are newer are set aside.

    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    settle(manager)
    folder = Path(manager.directory)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(like), meta=ocp.args.JsonRestore())
    damaged: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        if last is not None and step > last:
            continue
        found = _on_first(lambda step=step: damage(folder / str(step)))
        if not found:
            try:
                with quiet():
                    restored = manager.restore(step, args=args)
            except Exception as error:  # Orbax raises nothing narrower
                if (folder / str(step) / SUMS).exists() or is_out_of_memory(error):  # it is sound, then
                    raise
                found = f"it cannot be read: {reason_of(error)}"
            else:
                _on_first(lambda: _set_aside(folder, damaged))
                manager.reload()
                return restored["state"], restored["meta"]
        damaged[step] = found
    if damaged:
        raise UserError(_all_damaged(folder, damaged))
    return None


def _tidy(folder: Path) -> str:
    """Set aside what is visibly damaged, unless it is all there is: then return a refusal."""
    found = {step: damage(folder / str(step), SMALL) for step in reversed(steps_of(folder.parent))}
    damaged = {step: why for step, why in found.items() if why}
    if found and len(damaged) == len(found):
        return _all_damaged(folder, damaged)
    return _set_aside(folder, damaged)


def _set_aside(folder: Path, damaged: Mapping[int, str]) -> str:
    """Rename damaged checkpoints, and say so; the empty string means that nothing is refused."""
    for step, found in damaged.items():
        new = set_aside(folder / str(step))
        warn(f"{folder / str(step)} is damaged ({found}): set aside as {new.name}; the newest sound one is used")
    return ""


def _on_first(look: Callable[[], str]) -> str:
    """Return what the first host finds; the others learn only whether it found anything."""
    if jax.process_count() == 1:
        return look()
    from jax.experimental import multihost_utils

    found = look() if jax.process_index() == 0 else ""
    anything = multihost_utils.broadcast_one_to_all(np.int32(bool(found)))
    return found or ("damaged" if anything else "")


def _all_damaged(folder: Path, damaged: Mapping[int, str]) -> str:
    each = "; ".join(f"step {step}: {found}" for step, found in damaged.items())
    return f"{folder} holds no sound checkpoint ({each}): restore one from a copy, or start a new run"


def steps_of(run: Path) -> list[int]:
    """Return the steps of the run's finished checkpoints, in order, without opening Orbax."""
    return sorted(int(path.name) for path in (run / FOLDER).glob("*") if path.name.isdecimal())


def has_checkpoint(run: Path) -> bool:
    """Return whether the run has a finished checkpoint, without opening Orbax."""
    return bool(steps_of(run))


def load_params(run: Path, which: Literal["best", "latest"] | int = "latest") -> tuple[int, Params]:
    """Return the step chosen, and its parameters as nested dicts of float32 numpy arrays.

    The best is the one with the lowest validation loss; the newest if none was measured. A damaged one is named, and
    the next one taken; nothing is written.

    Raises:
        UserError: there is no such checkpoint, it is the only one asked for and damaged, or all are.
    """
    folder, steps = run / FOLDER, steps_of(run)
    if not folder.is_dir():
        raise UserError(f"{run} holds no checkpoint: train it first (python -m jax_mlm.train --out {run})")
    if not steps:
        raise UserError(f"{folder} holds no finished checkpoint")
    if isinstance(which, int) and which not in steps:
        raise UserError(f"{run} has no checkpoint of step {which}: it has {steps}")
    order = [which] if isinstance(which, int) else steps[::-1]
    if which == "best":
        order.sort(key=lambda step: _loss(folder / str(step)))
    damaged: dict[int, str] = {}
    for step in order:
        found = damage(folder / str(step))
        if not found:
            try:
                with quiet():
                    params = _read_params(folder / str(step))
            except Exception as error:  # Orbax raises nothing narrower
                if (folder / str(step) / SUMS).exists() or is_out_of_memory(error):  # it is sound, then
                    raise
                found = f"it cannot be read: {reason_of(error)}"
            else:
                for other, why in damaged.items():
                    warn(f"{folder / str(other)} is damaged ({why}): using step {step}")
                return step, params
        damaged[step] = found
    raise UserError(_all_damaged(folder, damaged))


def _loss(checkpoint: Path) -> float:
    """Return the validation loss of a checkpoint; infinity if none was measured, or if it cannot be read."""
    try:
        loss = float(json.loads((checkpoint / "metrics" / "metrics").read_bytes())["loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf
    return loss if math.isfinite(loss) else math.inf


def _read_params(checkpoint: Path) -> Params:
    path = (checkpoint / "state").absolute()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.metadata(path)
        like = getattr(found, "item_metadata", found).tree  # older ones return what newer ones wrap
        cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        item = jax.tree.map(lambda _: ocp.PLACEHOLDER, like)
        item["params"] = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like["params"])
        restore_args = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=cpu), like)
        restored = reader.restore(path, args=ocp.args.PyTreeRestore(item, restore_args=restore_args))
    return jax.tree.map(np.asarray, restored["params"])
