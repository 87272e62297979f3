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
from jax_mlm.errors import UserError, first_line, shown
from jax_mlm.files import write_atomically

METRICS_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.jsonl"
KINDS = ("train", "valid", "final")
"""Lines of figures alone."""
LARGEST = 1e30
"""What a figure is at most, unless a loss is infinite; Python counts on where a float ends."""
REMOVE = "remove that line, or restore the file"


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
        self._files: dict[str, TextIO] = {}
        self._written: set[tuple[str, float]] = set()
        for name in (METRICS_FILE, SAMPLES_FILE):
            if resume_after is not None and (run / name).exists():
                lines = _lines(run / name)
                keys = [_key_of(line) for line in lines]
                stay = [kind != "final" and step <= resume_after for kind, step in keys]
                write_atomically(run / name, "".join(itertools.compress(lines, stay)))
                self._written.update(itertools.compress(keys, stay))
            self._files[name] = (run / name).open("a", encoding="utf-8")
        self._tracker = tracker

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Add one object to the metrics, {"kind", "step", …values}, and hand it to the tracker."""
        if self._add(METRICS_FILE, {"kind": kind, "step": step, **values}) and self._tracker is not None:
            self._tracker.write(step, {f"{kind}/{name}": value for name, value in values.items()})

    def write_samples(self, step: int, samples: list[Json]) -> None:
        """Add the answers of one evaluation."""
        self._add(SAMPLES_FILE, {"kind": "samples", "step": step, "samples": samples})

    def _add(self, name: str, line: Json) -> bool:
        if (line["kind"], line["step"]) in self._written:  # a finished run was resumed: this step has been measured
            return False
        self._written.add((line["kind"], line["step"]))
        self._files[name].write(json.dumps(line, ensure_ascii=False) + "\n")
        self._files[name].flush()
        return True

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._tracker is not None:
            self._tracker.close()


def _key_of(line: str) -> tuple[str, float]:
    """Return the kind and step of a line; one cut short by a kill counts as after everything."""
    try:
        read = _object(line)
    except ValueError:
        return "", float("inf")
    return (read["kind"], read["step"]) if line.endswith("\n") else ("", float("inf"))


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
                raise UserError(f"{path}, line {number}: {first_line(error)}: {REMOVE}") from None
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
    return list(io.StringIO(path.read_text(encoding="utf-8", errors="replace")))
