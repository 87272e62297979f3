"""The run directory: `run.json`, `tokenizer.json`, `metrics.jsonl`, `samples.jsonl`, `checkpoints/`, `plots/`."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path

from jax_mlm.config import Json, TaskConfig, TrainConfig, from_json, to_json
from jax_mlm.errors import UserError, described, first_line, shown
from jax_mlm.files import discard, is_partial, write_atomically
from jax_mlm.run.lock import is_lock
from jax_mlm.version import package_version

RUN_FILE, TOKENIZER_FILE, CHECKPOINTS = "run.json", "tokenizer.json", "checkpoints"
FORMAT = 1
"""The version of run.json, the same from the first on: a change that older versions cannot read adds one."""
PACKAGES = ("jax-mlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tokenizers", "numpy")


def check_name(run: Path, option: str = "") -> None:
    """Raise a UserError for a path that is not UTF-8: checkpoints are not written below such a one, nor read."""
    try:
        str(run.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{option}{run}: the path is not UTF-8, which checkpoints need: choose another, or set LC_ALL=C.UTF-8"
        ) from None


def choose_directory(config: TrainConfig) -> Path:
    """Return the directory of a new run, which must not exist, or of the run to resume.

    A run that was killed before it wrote `run.json` has nothing to resume: the same command begins it anew.
    """
    check_name(Path(config.out), "--out ")
    if config.resume:
        if not config.out:
            raise UserError("--resume needs --out DIR: the run directory to continue")
        run = Path(config.out)
        if not (run / RUN_FILE).is_file():
            if begun(run) or (config.data and _is_free(run)):
                return run
            raise UserError(f"--out {run} is not a run directory (it has no {RUN_FILE}): nothing to --resume")
        if "imported_from" in read_run_file(run).get("data", {}):
            raise UserError(f"--out {run} was imported from Hugging Face, so it has no training to --resume")
        return run
    if config.out:
        run = Path(config.out)
        if not _is_free(run):
            raise UserError(f"--out {run} exists already: continue it with --resume, or choose another --out")
        return run
    first = Path("runs") / (Path(config.init).resolve().name if config.init else config.preset)
    run, number = first, 2
    while run.exists():
        run, number = first.with_name(f"{first.name}-{number}"), number + 1
    return run


def _is_free(run: Path) -> bool:
    """Return whether a run can begin here: nothing is there but the lock of one that has ended, or will be refused."""
    return not run.exists() or (run.is_dir() and all(map(is_lock, run.iterdir())))


def begun(run: Path) -> bool:
    """Return whether a run was killed here before it wrote `run.json`: there is nothing but what comes before."""
    inside = list(run.iterdir()) if run.is_dir() else []
    first = (CHECKPOINTS, TOKENIZER_FILE)
    return bool(inside) and all(path.name in first or is_lock(path) or is_partial(path) for path in inside)


def tidy(run: Path, resume: bool) -> None:
    """Remove what a kill left behind: files without their final name; all that was begun, if nothing is resumed."""
    for path in run.iterdir():
        if is_lock(path) or (resume and not is_partial(path)):
            continue
        if path.is_dir():
            discard(path)
        else:
            path.unlink(missing_ok=True)


def write_run(
    run: Path,
    config: TrainConfig,
    device: Mapping[str, object],
    data: Mapping[str, object],
    tuned: Mapping[str, object] | None = None,
) -> None:
    """Write `run.json`: everything needed to know how these weights were made.

    `tuned` is what a fine-tuned model has besides: its `task`, and the options (`finetune`) that made it.
    """
    versions = {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}
    body = {"format": FORMAT, "config": to_json(config), "versions": versions, "device": device, "data": data}
    body |= tuned or {}
    write_atomically(run / RUN_FILE, json.dumps(body, indent=2) + "\n")


def read_object(path: Path, remedy: str = "restore it from a copy") -> Json:
    """Return what a JSON file of a run holds, which may be no object at all if the file was edited."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(described(error, path)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {first_line(error)}; {remedy}") from None


def read_run_file(run: Path) -> Json:
    """Return the whole of `run.json`."""
    path = Path(run) / RUN_FILE
    check_name(path)
    if not path.is_file():
        raise UserError(f"{run} is not a run directory: it has no {RUN_FILE}")
    body = read_object(path)
    if not isinstance(body, dict) or not isinstance(body.get("data", {}), dict):
        raise UserError(f"{path} does not describe a run: restore it from a copy")
    format = body.get("format", FORMAT)
    if type(format) is not int or format < 1:
        raise UserError(f"{path} has an unknown format: {shown(format)}")
    if format > FORMAT:
        raise UserError(
            f"{path} was written by a newer version of jax_mlm: it has format {format}, and this one reads only up "
            f"to {FORMAT}: pip install -U jax-mlm"
        )
    return body


def read_run(run: Path) -> TrainConfig:
    """Return the complete configuration of a run."""
    return config_of(read_run_file(run), run)


def read_task(run: Path) -> TaskConfig | None:
    """Return what a run was fine-tuned for; None for a masked language model."""
    values = read_run_file(run).get("task")
    try:
        return None if values is None else from_json(TaskConfig, values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{run / RUN_FILE}: its task is not one of this version: {error}") from None


def config_of(body: Json, run: Path) -> TrainConfig:
    """Return the configuration that the `run.json` of a run holds."""
    try:
        values = dict(body["config"])
        if values.pop("tensorboard", False):  # runs from before --track
            values["track"] = "tensorboard"
        return from_json(TrainConfig, values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{Path(run) / RUN_FILE} is not a configuration of this version: {error}") from None
