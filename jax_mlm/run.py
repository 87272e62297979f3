"""The run directory: `run.json`, `tokenizer.json`, `metrics.jsonl`, `checkpoints/`, `plots/`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from jax_mlm.config import TrainConfig, from_json, to_json
from jax_mlm.errors import UserError

RUN_FILE, TOKENIZER_FILE, METRICS_FILE = "run.json", "tokenizer.json", "metrics.jsonl"
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
    first = Path("runs") / config.preset
    run, number = first, 2
    while run.exists():
        run, number = first.with_name(f"{first.name}-{number}"), number + 1
    return run


def write_atomically(path: Path, text: str) -> None:
    """Writes beside the file and renames: a reader, or a kill, never sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def write_run(run: Path, config: TrainConfig, device: dict[str, Any], data: dict[str, Any]) -> None:
    """Writes `run.json`: everything needed to say how these weights came to be."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
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
        return from_json(TrainConfig, read_run_file(run)["config"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{Path(run) / RUN_FILE} is not a configuration of this version: {error}") from None


class MetricsLog:
    """`metrics.jsonl`, append-only, one object a line; a resumed run drops the lines after its checkpoint first."""

    def __init__(self, run: Path, resume_after: int | None = None, tensorboard: bool = False) -> None:
        path = run / METRICS_FILE
        if resume_after is not None and path.exists():
            kept = [line for line in path.read_text().splitlines(True) if _step_of(line) <= resume_after]
            write_atomically(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = _open_tensorboard(run) if tensorboard else None

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Adds one object: {"kind", "step", …values}."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> float:
    """The step of a line; a line cut short by a kill counts as after everything."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else float("inf")
    except (json.JSONDecodeError, KeyError):
        return float("inf")


def _open_tensorboard(run: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs an extra: pip install 'jax-mlm[tensorboard]'") from None
    return SummaryWriter(str(run / "tensorboard"))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
