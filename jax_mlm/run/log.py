"""`metrics.jsonl` and `samples.jsonl`: append-only, one object per line."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

from jax_mlm.config import Json
from jax_mlm.errors import UserError, described, first_line, shown, warn
from jax_mlm.files import aside, write_atomically

METRICS_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.jsonl"
KINDS = ("train", "valid", "final")
"""Lines of figures alone."""
ROLLBACK = "rollback"
"""The kind of the line {"kind", "step", "from"}: the run diverged at step `from`, and went on from `step`."""
LARGEST = 1e30
"""What a figure is at most, unless a loss is infinite; Python counts on where a float ends."""
REMOVE = "remove that line, or restore the file"


@runtime_checkable
class Tracker(Protocol):
    """A destination for figures, under names like train/loss."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Lines:
    """A file that grows by whole lines; after a warning, those that the disk has no room for wait for the next one."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._waiting, self._warned = path, path.open("ab", buffering=0), b"", False
        self._whole = path.stat().st_size

    def add(self, line: str) -> None:
        """Append a line, after those that wait."""
        self._waiting += line.encode()
        try:
            self._file.truncate(self._whole)  # a part of a line may have been written before
            rest = memoryview(self._waiting)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            if not self._warned:
                warn(f"{described(error, self._path)}; its lines are kept until there is room, and the run goes on")
            self._warned = True
            return
        self._whole += len(self._waiting)
        self._waiting, self._warned = b"", False

    def close(self) -> None:
        """Try once more to write what waits, and close the file."""
        if self._waiting:
            self.add("")
        if self._waiting:
            with suppress(OSError):
                self._file.truncate(self._whole)
            warn(f"{self._path}: the last {self._waiting.count(10)} lines could not be written")
        self._file.close()


class MetricsLog:
    """`metrics.jsonl` and `samples.jsonl`: append-only, one object per line, each step at most once per kind.

    A resumed run first drops the lines after its checkpoint, and the line that was final until then.
    """

    def __init__(self, run: Path, resume_after: int | None = None, tracker: Tracker | None = None) -> None:
        self._run, self._tracker = run, tracker
        self._open(resume_after)

    def _open(self, resume_after: int | None) -> None:
        self._files: dict[str, Lines] = {}
        self._last: dict[str, float] = {}
        """The last step of each kind; their steps only rise."""
        for name in (METRICS_FILE, SAMPLES_FILE):
            path = self._run / name
            if resume_after is not None and path.exists():
                lines = _lines(path)
                keys = [_key_of(line) for line in lines]
                whole = [number for number, line in enumerate(lines, 1) if line.endswith("\n")]
                if broken := [number for number in whole if keys[number - 1] == BROKEN]:
                    kept = aside(path)
                    write_atomically(kept, path.read_bytes())
                    warn(f"{path}, line {broken[0]}: not a line of a log; left out, all of it is in {kept.name}")
                stay = [_stays(kind, step, resume_after) for kind, step in keys]
                write_atomically(path, "".join(itertools.compress(lines, stay)))
                self._last |= dict(itertools.compress(keys, stay))
            self._files[name] = Lines(path)

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
            try:
                self._tracker.write(step, {f"{kind}/{name}": value for name, value in values.items()})
            except OSError as error:
                warn(f"--track: {error.strerror or error}; the tracker gets no more figures until the run is resumed")
                self._tracker = None

    def write_samples(self, step: int, samples: list[Json]) -> None:
        """Add the answers of one evaluation."""
        self._add(SAMPLES_FILE, {"kind": "samples", "step": step, "samples": samples})

    def _add(self, name: str, line: Json) -> bool:
        kind, step = line["kind"], line["step"]
        if step <= self._last.get(kind, -1):  # a finished run was resumed: this step has been measured
            return False
        self._last[kind] = step
        self._files[name].add(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
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


BROKEN = ("", float("inf"))


def _key_of(line: str) -> tuple[str, float]:
    """Return the kind and step of a line; one that is damaged or cut short by a kill counts as after everything."""
    try:
        read = _object(line)
    except ValueError:
        return BROKEN
    return (read["kind"], read["step"]) if line.endswith("\n") else BROKEN


def read_metrics(run: Path) -> list[Json]:
    """Return all lines of `metrics.jsonl`; a UserError names one that does not hold figures."""
    lines = _read_lines(run / METRICS_FILE)
    for number, line in enumerate(lines, 1):
        for name, value in line.items() if line["kind"] in KINDS else ():
            if name != "kind" and (type(value) not in (int, float) or LARGEST < abs(value) < math.inf):
                raise UserError(
                    f"{run / METRICS_FILE}, line {number}: {name} is {shown(value)}, not a number: {REMOVE}"
                )
    return lines


def read_samples(run: Path) -> list[Json]:
    """Return all evaluations of `samples.jsonl`; none if the run predates that file."""
    if not (run / SAMPLES_FILE).is_file():
        return []
    lines = _read_lines(run / SAMPLES_FILE)
    for number, line in enumerate(lines, 1):
        samples = line.get("samples")
        if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
            raise UserError(f"{run / SAMPLES_FILE}, line {number}: it lists no samples: {REMOVE}")
    return lines


def _read_lines(path: Path) -> list[Json]:
    """Return every complete line; one that is being written, or was cut short by a kill, is left out."""
    found = []
    for number, line in enumerate(_lines(path), 1):
        if line.endswith("\n"):
            try:
                found.append(_object(line))
            except ValueError as error:
                raise UserError(
                    f"{path}, line {number}: {first_line(error)}: {REMOVE} (--resume leaves it out)"
                ) from None
    return found


def _object(line: str) -> Json:
    """Return the object of a line; a ValueError where it is none, or has no kind or step."""
    try:
        read = json.loads(line)
    except RecursionError:
        raise ValueError("not JSON (it is nested too deep)") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(read, dict) or not isinstance(read.get("kind"), str) or type(read.get("step")) is not int:
        raise ValueError("not an object with a kind and a step")
    return read


def _lines(path: Path) -> list[str]:
    """Return the lines, split at newlines alone (a text may hold U+2028); the last may be cut within a character."""
    try:
        return list(io.StringIO(path.read_text(encoding="utf-8", errors="replace")))
    except OSError as error:
        raise UserError(described(error, path)) from error
