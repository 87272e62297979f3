"""What a step of each arm takes, as a share of the preset's: arms of equal cost then differ in their steps alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.levers import DEFAULTS, Arm
from jax_mlm.config import TrainConfig
from jax_mlm.data.batches import Batch
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.parallel.compile import compile_step
from jax_mlm.parallel.mesh import make_mesh, make_placer
from jax_mlm.presets import PRESETS
from jax_mlm.tasks.mlm import masked_lm
from jax_mlm.train.__main__ import COMMAND
from jax_mlm.train.ahead import lowered

TURNS, STEPS = 5, 4
Step = Callable[[], float]
"""Takes a step and returns its seconds."""


def config_of(options: Sequence[str], **changed: Any) -> TrainConfig:
    """Return what the preset tiny is with some options, and the largest vocabulary that they allow.

    Args:
        options: words of the command line.
        changed: `batch` or `length`, as a ramp changes them.
    """
    config = COMMAND.read(["--preset", "tiny", "--steps", "1", "--data", "-", *options])
    corpus = replace(config.corpus, length=changed.get("length", config.corpus.length))
    model = replace(config.model, vocab_size=corpus.tokenizer_limit)
    return replace(config, model=model, corpus=corpus, batch=changed.get("batch", config.batch), accumulate=1)


def program_of(config: TrainConfig) -> TrainConfig:
    """Return the configuration without what does not change how long a step takes."""
    tiny, mask = PRESETS["tiny"], config.mask
    optim = replace(tiny.optim, optimizer=config.optim.optimizer)
    corpus = replace(tiny.corpus, length=config.corpus.length, tokenizer_limit=config.corpus.tokenizer_limit)
    rates = replace(tiny.mask, mask_rate=mask.mask_rate, mask_rate_end=mask.mask_rate_end)
    model = replace(config.model, init_std=tiny.model.init_std)
    return TrainConfig(model=model, mask=rates, optim=optim, corpus=corpus, batch=config.batch, accumulate=1)


def programs_of(arm: Arm) -> list[tuple[float, TrainConfig]]:
    """Return the programs that an arm's steps are made of, each with its share of them."""
    if not arm.ramp:
        return [(1.0, program_of(config_of(arm.options)))]
    begins = [share for share, _ in arm.ramp]
    shares = np.diff([*begins, 1.0]).tolist()
    return [
        (share, program_of(config_of(arm.options, **changed)))
        for share, (_, changed) in zip(shares, arm.ramp, strict=True)
    ]


def step_of(config: TrainConfig, dtype: str) -> Step:
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
    compiled, shapes = compile_step(step), step.args_info[0]
    state = jax.tree.map(lambda x: jax.device_put(draw.normal(0, 0.02, x.shape).astype(x.dtype)), shapes[1])
    key = jax.device_put(np.asarray(jax.random.key_data(jax.random.key(0))))
    batch = make_placer(mesh)(example)
    controls = jax.device_put(np.int32(1000)), None, jax.device_put(np.float32(0)), jax.device_put(np.int32(0))

    def take() -> float:
        nonlocal state
        began = time.perf_counter()
        state, metrics = compiled(key, state, batch, *controls)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began

    return take


def measured(arms: Mapping[str, Arm], dtype: str, say: Callable[[str], None]) -> dict[str, float]:
    """Return the seconds of a step of each arm: of each program the median over turns, in which all take some steps."""
    wanted = {name: programs_of(arm) for name, arm in arms.items()}
    programs = list(dict.fromkeys(config for parts in wanted.values() for _, config in parts))
    steps = []
    for number, config in enumerate(programs):
        say(f"compiling {number + 1} of {len(programs)}")
        steps.append(step_of(config, dtype))
    found: list[list[float]] = [[] for _ in steps]
    for turn in range(TURNS + 1):
        say(f"turn {turn + 1} of {TURNS + 1}")
        for seconds, step in zip(found, steps, strict=True):
            taken = [step() for _ in range(STEPS)]
            seconds += taken if turn else []  # the first are not yet as the others
    seconds_of = {config: statistics.median(seconds) for config, seconds in zip(programs, found, strict=True)}
    return {name: sum(share * seconds_of[config] for share, config in parts) for name, parts in wanted.items()}


def ratios(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return each arm's seconds as a multiple of the preset's."""
    return {name: round(each / seconds[DEFAULTS], 4) for name, each in seconds.items()}
