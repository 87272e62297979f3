"""What the report and the comparison show of a run, read from its directory alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jax_mlm.config import Json, to_json
from jax_mlm.errors import UserError
from jax_mlm.run.checkpoint import FOLDER
from jax_mlm.run.directory import config_of, read_run_file
from jax_mlm.run.log import METRICS_FILE, ROLLBACK, read_metrics, read_samples

Axis = Literal["step", "tokens", "seconds"]
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "train": ("loss", "seconds", "tokens_per_second"),
    "valid": ("loss",),
    "final": ("loss", "seconds"),
}
"""What a line of figures has held from the first version on, by its kind."""


@dataclass(frozen=True)
class Summary:
    """One run: its configuration and its measurements."""

    run: Path
    run_file: Json
    """The contents of `run.json`."""
    config: Json
    """Its configuration; options newer than the run have their defaults."""
    train: list[Json]
    valid: list[Json]
    final: Json | None
    """The measurement on all of the validation text; None until the run has ended."""
    samples: list[Json]
    rollbacks: list[Json]
    """Where the run diverged (`from`), and the step from which it went on."""

    @property
    def name(self) -> str:
        """Return the directory's name."""
        return self.run.resolve().name

    @property
    def steps(self) -> int:
        return max((line["step"] for line in (*self.train, *self.valid)), default=0)

    @property
    def tokens(self) -> int | None:
        """Return the tokens trained on; None for runs that predate the count."""
        return sum(line["tokens"] for line in self.train) if all("tokens" in line for line in self.train) else None

    @property
    def seconds(self) -> float:
        return max((line["seconds"] for line in (*self.train, *filter(None, [self.final]))), default=0.0)

    @property
    def skipped(self) -> int:
        """Return the steps whose update was skipped."""
        return sum(line.get("skipped", 0) for line in self.train)

    @property
    def best(self) -> Json | None:
        """Return the validation with the lowest loss."""
        return min(self.valid, key=lambda line: line["loss"], default=None)

    @property
    def tokens_per_second(self) -> float:
        """Return the median over the log lines, on which the first steps and pauses have no weight."""
        rates = sorted(line["tokens_per_second"] for line in self.train)
        return rates[len(rates) // 2] if rates else 0.0

    def curve(self, lines: Sequence[Json], key: str, axis: Axis = "step") -> list[tuple[float, float]]:
        """Return (x, y) of each line that has the key; x is its step, or the tokens or seconds until then."""
        at: dict[int, float] = {line["step"]: line["step"] for line in lines}
        if axis != "step":
            amounts = [line["seconds"] if axis == "seconds" else line.get("tokens", 0) for line in self.train]
            sums = amounts if axis == "seconds" else itertools.accumulate(amounts)
            at = dict(zip((line["step"] for line in self.train), sums, strict=True))
        return [(at[line["step"]], line[key]) for line in lines if key in line and line["step"] in at]


def summarise(run: Path) -> Summary:
    """Read a run directory, each of its files once.

    Raises:
        UserError: it is not a run directory, or nothing was trained in it.
    """
    run_file = read_run_file(run)
    if not (run / METRICS_FILE).is_file():
        raise UserError(f"{run} has no {METRICS_FILE}: nothing was trained there")
    lines = read_metrics(run)
    for line in lines:
        if missing := [name for name in REQUIRED.get(line["kind"], ()) if name not in line and "skipped" not in line]:
            raise UserError(
                f"{run / METRICS_FILE}: the {line['kind']} line of step {line['step']} has no {missing[0]}: remove it"
            )
    of = {kind: [line for line in lines if line["kind"] == kind] for kind in ("train", "valid", "final", ROLLBACK)}
    config = to_json(config_of(run_file, run))
    return Summary(
        run,
        run_file,
        config,
        of["train"],
        of["valid"],
        of["final"][-1] if of["final"] else None,
        read_samples(run),
        of[ROLLBACK],
    )


def flat(config: Json) -> Json:
    """Return the configuration's options by the names they have on the command line."""
    out: Json = {}
    for name, value in config.items():
        out |= flat(value) if isinstance(value, dict) else {f"--{name.replace('_', '-')}": value}
    return out


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    step: int
    size: int
    """Bytes."""
    loss: float | None
    """Validation loss, if it was measured."""


def checkpoints(summary: Summary) -> list[Checkpoint]:
    """Return the finished checkpoints, in order of their steps."""
    losses = {line["step"]: line["loss"] for line in summary.valid}
    folder = summary.run / FOLDER
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
    return [Checkpoint(step, _size(folder / str(step)), losses.get(step)) for step in steps]


def _size(folder: Path) -> int:
    """Return a folder's size in bytes; a file deleted meanwhile, as a checkpoint is replaced, counts as zero."""
    total = 0
    for parent, _, files in os.walk(folder):  # unlike rglob, it skips a folder that has been deleted
        for name in files:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total
