"""What a step of each arm takes, as a share of the preset's: arms of equal cost then differ in their steps alone."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from common import sides
from common.levers import DEFAULTS, Arm, arms_by_name, changed
from common.sides import Side
from common.steps import Seconds, lowered_steps
from jax_mlm.config import TrainConfig
from jax_mlm.data.batches import Batch
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.parallel.compile import compile_step
from jax_mlm.parallel.mesh import make_mesh
from jax_mlm.presets import PRESETS
from jax_mlm.tasks.mlm import masked_lm
from jax_mlm.train.__main__ import COMMAND
from jax_mlm.train.ahead import lowered

TURNS, TAKEN = 8, 3
"""Turns of the two sides of a comparison, and the steps of each."""


def config_of(preset: str, options: Sequence[str]) -> TrainConfig:
    """Return what a preset is with some options of the command line, and with the largest vocabulary."""
    config = COMMAND.read(["--preset", preset, "--steps", "1", "--data", "-", *options])
    return replace(config, model=replace(config.model, vocab_size=config.corpus.tokenizer_limit), accumulate=1)


def program_of(config: TrainConfig) -> TrainConfig:
    """Return the configuration without what does not change how long a step takes."""
    own, mask = PRESETS[config.preset], config.mask
    optim = replace(own.optim, optimizer=config.optim.optimizer)
    corpus = replace(own.corpus, length=config.corpus.length, tokenizer_limit=config.corpus.tokenizer_limit)
    rates = replace(own.mask, mask_rate=mask.mask_rate, mask_rate_end=mask.mask_rate_end)
    model = replace(config.model, init_std=own.model.init_std)
    return TrainConfig(model=model, mask=rates, optim=optim, corpus=corpus, batch=config.batch, accumulate=1)


def programs_of(preset: str, arm: Arm) -> list[tuple[float, TrainConfig]]:
    """Return the programs that an arm's steps are made of, each with its share of them."""
    begins, parts = zip(*(arm.ramp or ((0.0, {}),)), strict=True)
    shares, config = np.diff([*begins, 1.0]).tolist(), config_of(preset, arm.options)
    return [(share, program_of(changed(config, fields))) for share, fields in zip(shares, parts, strict=True)]


def step_of(config: TrainConfig, dtype: str) -> Seconds:
    """Return a step with random tokens, two documents in each row.

    Where masks become fewer it is the step of the middle third of a long run, whose cost is about the mean of all.
    """
    size, length = config.model.vocab_size, config.corpus.length
    config = replace(config, dtype=dtype)
    vocabulary = Vocabulary(size, pad=0, unk=1, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))
    task = masked_lm(config.model, config.mask, vocabulary, length, jnp.dtype(dtype))
    task = task.later[0][1] if task.later else task
    draw = np.random.default_rng(0)
    at = np.tile(np.arange(length, dtype=np.int32), (config.batch, 1))
    segments = 1 + (at >= length // 2).astype(np.int32)
    tokens = draw.integers(5, size, at.shape, np.int32)
    example = Batch(tokens, segments, at, at, np.arange(config.batch, dtype=np.int32))
    mesh = make_mesh(config.batch, 1, "")
    step = lowered(task, config, mesh, example)
    return lowered_steps(step, compile_step(step), example, mesh)


def serve(preset: str, arm: str, part: int, dtype: str) -> None:
    """Compile a part of an arm, and take its steps when asked."""
    step = step_of(programs_of(preset, arms_by_name(preset)[arm])[part][1], dtype)
    for _ in range(3):
        step()
    sides.serve("ready", step)


def compared(script: str, preset: str, arm: str, part: int, dtype: str) -> list[float]:
    """Return what a step takes as a multiple of the preset's, in each of some turns of two new processes."""
    lines = ([sys.executable, script, "cost", preset, *each, dtype] for each in ((DEFAULTS, "0"), (arm, str(part))))
    default, other = map(Side, lines)
    with default, other:
        default.ready(), other.ready()
        turns = [[statistics.median(side.take(TAKEN)) for side in (default, other)] for _ in range(TURNS)]
    return [theirs / ours for ours, theirs in turns]


def measured(
    script: str, preset: str, arms: Mapping[str, Arm], dtype: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return what a step of each arm takes, as a multiple of the preset's, with the quartiles of the turns.

    What one process takes varies with where its memory lies, so each program has a process of its own, beside a new one
    of the preset. Arms of the same program are measured once.
    """
    (own,) = (config for _, config in programs_of(preset, arms_by_name(preset)[DEFAULTS]))
    known = {own: [1.0]}
    for name, arm in arms.items():
        for part, (_, config) in enumerate(programs_of(preset, arm)):
            if config not in known:
                say(f"{name} …")
                known[config] = compared(script, preset, name, part, dtype)
    found = {}
    for name, arm in arms.items():
        parts = [(share, np.quantile(known[config], (0.25, 0.5, 0.75))) for share, config in programs_of(preset, arm)]
        low, middle, high = np.sum([share * each for share, each in parts], axis=0).round(4).tolist()
        found[name] = {"ratio": middle, "quartiles": [low, high]}
    return found
