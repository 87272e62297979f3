"""The run directory: `run.json`, `tokenizer.json`, `metrics.jsonl`, `samples.jsonl`, `checkpoints/`, `plots/`."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from jax_mlm.config import TrainConfig, from_json, to_json
from jax_mlm.errors import UserError

RUN_FILE, TOKENIZER_FILE = "run.json", "tokenizer.json"
METRICS_FILE, SAMPLES_FILE = "metrics.jsonl", "samples.jsonl"
PACKAGES = ("jax-mlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tokenizers", "numpy")


def choose_directory(config: TrainConfig) -> Path:
    """The directory of a new run, which must not exist, or of the run to resume, which must."""
    if config.resume:
        if not config.out:
            raise UserError("--resume needs --out DIR: the run directory to continue")
        run = Path(config.out)
        if not (run / RUN_FILE).is_file():
            raise UserError(f"--out {run} is no run directory (it has no {RUN_FILE}): nothing to --resume")
        if "imported_from" in read_run_file(run).get("data", {}):
            raise UserError(f"--out {run} was imported from Hugging Face: there is no training of it to --resume")
        return run
    if config.out:
        run = Path(config.out)
        if run.exists() and (not run.is_dir() or any(run.iterdir())):
            raise UserError(f"--out {run} exists already: continue it with --resume, or choose another --out")
        return run
    first = Path("runs") / (Path(config.init).resolve().name if config.init else config.preset)
    run, number = first, 2
    while run.exists():
        run, number = first.with_name(f"{first.name}-{number}"), number + 1
    return run


def make_folder(folder: Path, option: str) -> None:
    """Makes it, and those above it; a UserError names the option where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder}: cannot be written ({error.strerror})") from error


def write_atomically(path: Path, text: str) -> None:
    """Writes beside the file and renames: a reader, or a kill, never sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def package_version(name: str) -> str:
    """The version of an installed distribution, or words that say that there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def write_run(run: Path, config: TrainConfig, device: dict[str, Any], data: dict[str, Any]) -> None:
    """Writes `run.json`: everything needed to say how these weights came to be."""
    versions = {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}
    body = {"format": 1, "config": to_json(config), "versions": versions, "device": device, "data": data}
    write_atomically(run / RUN_FILE, json.dumps(body, indent=2) + "\n")


def read_run_file(run: Path) -> dict[str, Any]:
    """The whole of `run.json`."""
    path = Path(run) / RUN_FILE
    if not path.is_file():
        raise UserError(f"{run} is no run directory: it has no {RUN_FILE}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def read_run(run: Path) -> TrainConfig:
    """The complete configuration of a run."""
    try:
        values = dict(read_run_file(run)["config"])
        if values.pop("tensorboard", False):  # runs from before --track
            values["track"] = "tensorboard"
        return from_json(TrainConfig, values)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{Path(run) / RUN_FILE} is not a configuration of this version: {error}") from None


class Tracker(Protocol):
    """Takes figures under names like train/loss."""

    def write(self, step: int, figures: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """`metrics.jsonl` and `samples.jsonl`: append-only, one object a line, a step at most once of each kind.

    A resumed run first drops what lies after its checkpoint, and what was final before it went on.
    """

    def __init__(self, run: Path, resume_after: int | None = None, tracker: Tracker | None = None) -> None:
        self._files: dict[str, TextIO] = {}
        self._written: set[tuple[str, float]] = set()
        for name in (METRICS_FILE, SAMPLES_FILE):
            if resume_after is not None and (run / name).exists():
                lines = (run / name).read_text(encoding="utf-8").splitlines(True)
                keys = [_key_of(line) for line in lines]
                stay = [kind != "final" and step <= resume_after for kind, step in keys]
                write_atomically(run / name, "".join(itertools.compress(lines, stay)))
                self._written.update(itertools.compress(keys, stay))
            self._files[name] = (run / name).open("a", encoding="utf-8")
        self._tracker = tracker

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Adds one object to the metrics, {"kind", "step", …values}, and hands it to the tracker."""
        if self._add(METRICS_FILE, {"kind": kind, "step": step, **values}) and self._tracker is not None:
            self._tracker.write(step, {f"{kind}/{name}": value for name, value in values.items()})

    def write_samples(self, step: int, samples: list[dict[str, Any]]) -> None:
        """Adds the answers of one evaluation."""
        self._add(SAMPLES_FILE, {"kind": "samples", "step": step, "samples": samples})

    def _add(self, name: str, line: dict[str, Any]) -> bool:
        if (line["kind"], line["step"]) in self._written:  # a finished run, resumed: it has been measured already
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
    """Kind and step of a line; one cut short by a kill counts as after everything."""
    try:
        read = json.loads(line)
        return (read["kind"], read["step"]) if line.endswith("\n") else ("", float("inf"))
    except (json.JSONDecodeError, KeyError):
        return "", float("inf")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of `metrics.jsonl`."""
    return _read_lines(run / METRICS_FILE)


def read_samples(run: Path) -> list[dict[str, Any]]:
    """All evaluations of `samples.jsonl`; none where the run is older than that file."""
    return _read_lines(run / SAMPLES_FILE) if (run / SAMPLES_FILE).is_file() else []


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line; one that is being written, or was cut short by a kill, is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
