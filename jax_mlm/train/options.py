"""The options of `python -m jax_mlm.train`: what they are read over, and which a resumed run may change."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from jax_mlm.cli.help import nearest
from jax_mlm.config import TrainConfig
from jax_mlm.errors import UserError
from jax_mlm.parallel import hosts
from jax_mlm.presets import PRESETS
from jax_mlm.run.directory import RUN_FILE, read_run
from jax_mlm.train.start import continued
from jax_mlm.train.teacher import student_defaults

EXAMPLES = """examples:
  python -m jax_mlm.train                                     the founding sentence, in seconds
  python -m jax_mlm.train --data my-text/ --budget 30m        your own text, half an hour
  python -m jax_mlm.train --resume --out runs/tiny            go on with a run
  python -m jax_mlm.train --init bert-base/ --data my-text/ --add-tokens words.txt
                                                              from weights that are there already
  python -m jax_mlm.train --distil runs/base --data my-text/  a model of half the layers, taught by a larger one"""

GROUPS = {
    "text": ("data", "valid", "tokenizer", "tokenizer_kind", "tokenizer_size", "document", "length"),
    "how long, and where to": ("steps", "budget", "eval_every", "out", "resume", "track"),
    "model": ("preset", "init", "distil", "layers", "width", "heads"),
    "training": ("batch", "accumulate", "lr", "optimizer", "schedule", "mask_rule", "mask_rate", "seed", "dtype"),
}
"""What --help shows, by field; --help-all shows the others too."""

FREE_ON_RESUME = {
    *("steps", "budget", "resume", "out", "eval_every", "eval_rows", "log_every", "track", "dtype", "multi_host"),
}
"""Fields that may differ from those a run began with."""


def option(argv: Sequence[str], name: str) -> str | None:
    """The value of --name in raw arguments: needed before the others can be read."""
    for i, word in enumerate(argv):
        if word == f"--{name}" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def defaults(argv: Sequence[str]) -> TrainConfig:
    """The defaults that options are read over: those of the run to resume, or of the preset."""
    hosts.join("--multi-host" in argv)  # before any device is looked at
    out, preset, init, teacher = (option(argv, name) for name in ("out", "preset", "init", "distil"))
    if "--resume" in argv and out and (Path(out) / RUN_FILE).is_file():
        return replace(read_run(Path(out)), resume=True, out=out)
    if preset is None:
        if option(argv, "data") is None:
            if init is not None or teacher is not None:
                raise UserError(f"--{'init' if init is not None else 'distil'} needs --data: the text to learn from")
            return PRESETS["sentence"]
        preset = "tiny" if jax.default_backend() == "cpu" else "small"
        if hosts.is_first():
            print(f"--data without --preset: taking {preset} for {jax.default_backend()}", file=sys.stderr)
    if preset not in PRESETS:
        raise UserError(
            f"--preset {preset} is unknown: choose from {', '.join(PRESETS)}.{nearest(preset, list(PRESETS))}"
        )
    chosen = replace(PRESETS[preset], steps=0) if option(argv, "budget") is not None else PRESETS[preset]
    if init is not None:
        return continued(chosen, Path(init))
    return chosen if teacher is None else student_defaults(chosen, Path(teacher), option(argv, "preset") is not None)


def check_resumed(config: TrainConfig) -> None:
    """Refuses options that contradict the run to resume."""
    if not config.resume or not config.out or not (Path(config.out) / RUN_FILE).is_file():
        return
    before = read_run(Path(config.out))
    for field in dataclasses.fields(TrainConfig):
        if field.name not in FREE_ON_RESUME and getattr(config, field.name) != getattr(before, field.name):
            raise UserError(
                f"--resume continues {config.out} with its own options, but {field.name} differs from its {RUN_FILE}"
            )
