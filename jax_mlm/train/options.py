"""The options of `python -m jax_mlm.train`: what they override, and which of them a resumed run may change."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jax_mlm.cli.parser import Given
from jax_mlm.config import TrainConfig
from jax_mlm.errors import UserError, unknown_choice
from jax_mlm.presets import PRESETS, preset_for
from jax_mlm.run.directory import RUN_FILE, read_run

EXAMPLES = """examples:
  python -m jax_mlm.train                                     the founding sentence, in seconds
  python -m jax_mlm.train --data my-text/ --budget 30m        your own text, half an hour
  python -m jax_mlm.train --resume --out runs/tiny            continue a run
  python -m jax_mlm.train --init bert-base/ --data my-text/ --add-tokens words.txt
                                                              start from existing weights
  python -m jax_mlm.train --distil runs/base --data my-text/  distil a larger model into half its layers"""

GROUPS = {
    "text": ("data", "valid", "tokenizer", "tokenizer_kind", "tokenizer_size", "document", "length"),
    "duration and output": ("steps", "budget", "eval_every", "out", "resume", "track"),
    "model": ("preset", "init", "distil", "layers", "width", "heads"),
    "training": ("batch", "accumulate", "lr", "optimizer", "schedule", "mask_rule", "mask_rate", "seed", "dtype"),
}
"""The fields that --help shows; --help-all shows the others too."""

FREE_ON_RESUME = {
    *("steps", "budget", "resume", "out", "eval_every", "eval_rows", "log_every", "track", "profile"),
    *("dtype", "multi_host", "mesh"),
    "accumulate",  # the same gradient in less memory, for a run that no longer fits
}
"""Fields that a resumed run may change."""


def shown(argv: Sequence[str]) -> TrainConfig:
    """Return the preset whose values --help shows as defaults: the one named, or the one used without options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    return PRESETS.get(parser.parse_known_args(argv)[0].preset, PRESETS["sentence"])


def defaults(given: Given) -> TrainConfig:
    """Return the config that the given options override: that of the run to resume, or of the preset.

    The other hosts are joined here, before any device is used. A preset's microbatches are for devices
    that do not say how much memory they have: on others a new run takes as few as fit.
    """
    preset, data = given.get("preset"), given.get("data")
    if preset is not None and preset not in PRESETS:
        raise unknown_choice("--preset", preset, PRESETS)
    before = _run_to_resume(given.get("resume", False), given.get("out", ""))
    if before is None and preset is None and data is None:
        for name in ("init", "distil"):
            if name in given:
                raise UserError(f"--{name} needs --data: the text to learn from")
    weights = next((f"--{name}" for name in ("init", "distil") if name in given), "")
    if weights and given.get("embeddings") == "counted":
        raise UserError(f"--embeddings counted is for new weights, and {weights} has its own: give one of them")
    from jax_mlm.parallel import hosts

    hosts.join(given.get("multi_host", before is not None and before.multi_host))
    if before is not None:
        return replace(before, resume=True, profile=0)  # what was asked for once is not done again
    if preset is None and data is None:
        return replace(PRESETS["sentence"], steps=0) if "budget" in given else PRESETS["sentence"]
    import jax

    from jax_mlm.parallel.devices import limit_of_device

    if preset is None and "budget" in given and not {"init", "distil"}.intersection(given):
        chosen = _chosen_for(given)
    else:
        if preset is None:
            preset = "tiny" if jax.default_backend() == "cpu" else "small"
            if hosts.is_first():
                print(f"--data without --preset: using {preset} for {jax.default_backend()}", file=sys.stderr)
        chosen = preset_for(preset, given)
        chosen = replace(chosen, steps=0) if "budget" in given else chosen
    if limit_of_device() is not None:
        chosen = replace(chosen, accumulate=0)
    if "init" in given:
        from jax_mlm.train.start import continued

        return continued(chosen, Path(given["init"]))
    if "distil" in given:
        from jax_mlm.train.teacher import student_defaults

        return student_defaults(chosen, Path(given["distil"]), "preset" in given)
    return chosen


def _chosen_for(given: Given) -> TrainConfig:
    """Return what a budget is spent on, the same on all hosts, and print why."""
    from jax_mlm.parallel import hosts
    from jax_mlm.train.budget import choose, measured, text_tokens
    from jax_mlm.train.duration import parse_budget

    seconds = parse_budget(given["budget"])
    text = hosts.on_every_host(lambda: text_tokens(given["data"], given.get("tokenizer_kind", "auto")))
    if hosts.is_first():
        print("timing what this machine computes, to choose what the budget is spent on", file=sys.stderr)
    machine = measured(given)
    slowest = min(map(float, hosts.gather(str(machine.flops))))
    choice = choose(given, seconds, machine._replace(flops=slowest), text)
    if hosts.is_first():
        for line in choice.lines:
            print(line, file=sys.stderr)
    return choice.config


def _run_to_resume(resume: bool, out: str) -> TrainConfig | None:
    return read_run(Path(out)) if resume and out and (Path(out) / RUN_FILE).is_file() else None


def check_resumed(config: TrainConfig) -> None:
    """Refuse options that contradict the run to resume."""
    before = _run_to_resume(config.resume, config.out)
    if before is None:
        return
    for field in dataclasses.fields(TrainConfig):
        if field.name not in FREE_ON_RESUME and getattr(config, field.name) != getattr(before, field.name):
            raise UserError(
                f"--resume continues {config.out} with its own options, but {field.name} differs from its {RUN_FILE}"
            )
