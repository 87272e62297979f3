"""Send the figures to a tracker as well, by one option: TensorBoard, Weights & Biases or Trackio."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

from jax_mlm.config import TrainConfig, to_json
from jax_mlm.errors import UserError
from jax_mlm.files import write_atomically
from jax_mlm.run.log import Tracker

PROJECT = "jax-mlm"
MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
"""Value of --track → the module it needs; the extra that installs it has the value's name."""
ID_FILE = "tracker-id"
"""Holds the name under which a tracker knows the run, so that a resumed run continues there."""


def check_tracker(name: str) -> None:
    """Refuse a tracker that cannot work, before anything is written."""
    if name == "none":
        return
    if importlib.util.find_spec(MODULES[name]) is None:
        raise UserError(f"--track {name} needs an extra: pip install 'jax-mlm[{name}]'")
    if name == "wandb":
        wandb = import_module("wandb")

        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:
            raise UserError("--track wandb: not logged in; run `wandb login`, or set WANDB_MODE=offline")


def open_tracker(name: str, run: Path, config: TrainConfig) -> Tracker | None:
    """Open the tracker of a run directory that exists; return None for `none`."""
    match name:
        case "tensorboard":
            return _TensorBoard(run)
        case "wandb":
            return _Wandb(run, config)
        case "trackio":
            return _Trackio(run, config)
        case _:
            return None


class _TensorBoard:
    """Event files in the run directory, written at once: a SummaryWriter's thread dies with a full disk, unnoticed."""

    def __init__(self, run: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        (run / "tensorboard").mkdir(exist_ok=True)
        self._writer = EventsWriter(str(run / "tensorboard" / "events"))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        from tensorboardX.summary import scalar

        event = import_module("tensorboardX.proto.event_pb2").Event
        for name, value in figures.items():
            self._writer.write_event(event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of the project jax-mlm; offline with WANDB_MODE=offline."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        wandb = import_module("wandb")

        settings = wandb.Settings(console="off", silent=True)
        try:
            self._run = wandb.init(
                project=PROJECT, name=run.name, id=_tracker_id(run), resume="allow", dir=str(run),
                config=to_json(config), settings=settings,
            )  # fmt: skip
        except wandb.Error as error:
            raise UserError(
                f"--track wandb: {str(error).splitlines()[0]} (WANDB_MODE=offline needs no network)"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({"step": step, **figures})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of the project jax-mlm in Trackio's local store."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        trackio = import_module("trackio")

        name = f"{run.name}-{_tracker_id(run)}"
        with redirect_stdout(sys.stderr):  # it prints a greeting
            self._run = trackio.init(project=PROJECT, name=name, resume="allow", config=to_json(config))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        trackio = import_module("trackio")

        with redirect_stdout(sys.stderr):
            trackio.finish()  # the module's: the run's own would be finished again at exit, with a line on stdout


def _tracker_id(run: Path) -> str:
    path = run / ID_FILE
    if not path.exists():
        write_atomically(path, uuid.uuid4().hex[:8] + "\n")
    return path.read_text().strip()
