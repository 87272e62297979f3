"""`metrics.jsonl` and `samples.jsonl`: append-only, one object per line."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TextIO, runtime_checkable

from jax_mlm.config import Json
from jax_mlm.files import write_atomically

METRICS_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.jsonl"
ROLLBACK = "rollback"
"""The kind of the line {"kind", "step", "from"}: the run diverged at step `from`, and went on from `step`."""


@runtime_checkable
class Tracker(Protocol):
    """A destination for figures, under names like train/loss."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """`metrics.jsonl` and `samples.jsonl`: append-only, one object per line, each step at most once per kind.

    A resumed run first drops the lines after its checkpoint, and the line that was final until then.
    """

    def __init__(self, run: Path, resume_after: int | None = None, tracker: Tracker | None = None) -> None:
        self._run, self._tracker = run, tracker
        self._open(resume_after)

    def _open(self, resume_after: int | None) -> None:
        self._files: dict[str, TextIO] = {}
        self._last: dict[str, float] = {}
        """The last step of each kind; their steps only rise."""
        for name in (METRICS_FILE, SAMPLES_FILE):
            path = self._run / name
            if resume_after is not None and path.exists():
                lines = _lines(path)
                keys = [_key_of(line) for line in lines]
                stay = [_stays(kind, step, resume_after) for kind, step in keys]
                write_atomically(path, "".join(itertools.compress(lines, stay)))
                self._last |= dict(itertools.compress(keys, stay))
            self._files[name] = path.open("a", encoding="utf-8")

    def roll_back(self, step: int) -> None:
        """Drop the lines after a step, as a resumed run does."""
        self._close_files()
        self._open(step)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Add one object to the metrics, {"kind", "step", …values}, and hand it to the tracker.

        JSON has no word for a figure that is not finite: it is left out.
        """
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        if self._add(METRICS_FILE, {"kind": kind, "step": step, **values}) and self._tracker is not None:
            self._tracker.write(step, {f"{kind}/{name}": value for name, value in values.items()})

    def write_samples(self, step: int, samples: list[Json]) -> None:
        """Add the answers of one evaluation."""
        self._add(SAMPLES_FILE, {"kind": "samples", "step": step, "samples": samples})

    def _add(self, name: str, line: Json) -> bool:
        kind, step = line["kind"], line["step"]
        if step <= self._last.get(kind, -1):  # a finished run was resumed: this step has been measured
            return False
        self._last[kind] = step
        self._files[name].write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._files[name].flush()
        return True

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()

    def close(self) -> None:
        self._close_files()
        if self._tracker is not None:
            self._tracker.close()


def _stays(kind: str, step: float, resumed: float) -> bool:
    """Return whether a line holds for a run that resumes at a step; a roll-back to this very step is done once more."""
    return kind != "final" and (step < resumed if kind == ROLLBACK else step <= resumed)


def _key_of(line: str) -> tuple[str, float]:
    """Return the kind and step of a line; one cut short by a kill counts as after everything."""
    try:
        read = json.loads(line)
        return (read["kind"], read["step"]) if line.endswith("\n") else ("", float("inf"))
    except (json.JSONDecodeError, KeyError):
        return "", float("inf")


def read_metrics(run: Path) -> list[Json]:
    """Return all lines of `metrics.jsonl`."""
    return _read_lines(run / METRICS_FILE)


def read_samples(run: Path) -> list[Json]:
    """Return all evaluations of `samples.jsonl`; none if the run predates that file."""
    return _read_lines(run / SAMPLES_FILE) if (run / SAMPLES_FILE).is_file() else []


def _read_lines(path: Path) -> list[Json]:
    """Return every complete line; one that is being written, or was cut short by a kill, is left out."""
    return [json.loads(line) for line in _lines(path) if line.endswith("\n")]


def _lines(path: Path) -> list[str]:
    """Return the lines, split at newlines alone (a text may hold U+2028); the last may be cut within a character."""
    return list(io.StringIO(path.read_text(encoding="utf-8", errors="replace")))
