"""What a time budget is spent on: the preset and its batch, by the speed of the devices and the size of the text.

Every choice is a default that an option overrides. `docs/recipe.md` shows what the figures here were measured with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_mlm.config import TrainConfig
from jax_mlm.cost.flops import layers_pairs, train_flops
from jax_mlm.cost.memory import weights_of
from jax_mlm.data.decoding import COMPRESSED
from jax_mlm.data.sources import STDIN, find_sources
from jax_mlm.parallel.compile import compute_dtype
from jax_mlm.presets import PRESETS

SIZES = ("tiny", "small", "base", "large")
"""The presets of our own that are chosen among, the smallest first."""
PER_WEIGHT = 15
"""Tokens for each weight of the layers that a preset has to learn from; an estimate, not measured: see the recipe."""
REREAD = 40
"""Readings of a text after which another teaches next to nothing (Muennighoff et al. 2023, measured on decoders)."""
FEW_STEPS, LEAST_BATCH = 500, 8
"""Steps below which the batch is halved, and how far."""
BYTES_A_TOKEN, UNPACKED = 4.5, 3.0
"""Bytes of text in a token, and of text in a byte of a compressed file."""
REACHED = ((0.5e6, 6.0), (8.03e6, 3.436))
"""Tokens that `tiny` learned from on WikiText-2, each in a run of its own, and its validation loss after them."""


class Speed(NamedTuple):
    """How fast the devices of a run are together."""

    flops: float
    """Floating-point operations a second of products in the type of the run."""
    share: float
    """What a training step has of it."""


class Choice(NamedTuple):
    """A preset, and what there is to say of it."""

    config: TrainConfig
    lines: tuple[str, ...]
    warnings: tuple[str, ...]


def measured_speed(config: TrainConfig) -> Speed:
    """Time products in the type that a run of this configuration takes, for a fraction of a second."""
    cpu, dtype = jax.default_backend() == "cpu", compute_dtype(config)
    side, rows = (512, 4096) if cpu else (4096, 8192)
    left, right = jnp.ones((rows, side), dtype), jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul).lower(left, right).compile()
    seconds = []
    for _ in range(9):
        began = time.perf_counter()
        jax.block_until_ready(product(left, right))
        seconds.append(time.perf_counter() - began)
    share = {True: 0.2 if dtype == jnp.bfloat16 else 0.45, False: 0.4}[cpu]
    return Speed(2 * rows * side * side / min(seconds) * jax.device_count(), share)


def text_tokens(data: Sequence[str]) -> float | None:
    """Estimate the tokens of the files that `--data` names, by their bytes; None of standard input.

    Raises:
        UserError: there is no such text.
    """
    if STDIN in data:
        return None
    sizes = (
        (path.stat().st_size, path.suffix.lower() in (*COMPRESSED, ".parquet")) for path in find_sources(data).files
    )
    return sum(size * (UNPACKED if packed else 1.0) for size, packed in sizes) / BYTES_A_TOKEN


def flops_of_token(config: TrainConfig) -> float:
    """Count the operations of a training step for each token, in rows that are one document."""
    model = replace(config.model, vocab_size=config.corpus.tokenizer_size or config.corpus.tokenizer_limit)
    pairs = layers_pairs(model, np.array([config.corpus.length])) / config.corpus.length
    return train_flops(model, 1, pairs, config.mask.mask_rate)


def choose(seconds: float, speed: Speed, text: float | None, override: Callable[[TrainConfig], TrainConfig]) -> Choice:
    """Choose what to train in some seconds.

    Args:
        seconds: the budget.
        speed: of all devices together.
        text: tokens there are to learn from; None if that is not known.
        override: puts the options that are given in the place of a preset's.
    """

    def tokens(config: TrainConfig) -> float:
        return seconds * speed.flops * speed.share / flops_of_token(config)

    def per_weight(name: str) -> float:
        """Tokens that are worth reading, for each weight of the layers."""
        seen = tokens(PRESETS[name])
        return min(seen, seen if text is None else REREAD * text) / weights_of(
            replace(PRESETS[name].model, vocab_size=0)
        )

    name = max((each for each in SIZES if per_weight(each) >= PER_WEIGHT), key=SIZES.index, default=SIZES[0])
    larger = SIZES[SIZES.index(name) + 1 :][:1]
    chosen = replace(PRESETS[name], steps=0)
    while (halved := chosen.batch // 2) >= LEAST_BATCH and _steps(override(chosen), tokens) < FEW_STEPS:
        if override(replace(chosen, batch=halved)).batch != halved:  # an option gives it
            break
        chosen = replace(chosen, batch=halved, accumulate=min(chosen.accumulate, halved))
    run = override(chosen)
    seen, model = tokens(run), run.model
    why = "; ".join(
        f"{each} would have {per_weight(each):.2g} tokens a weight, fewer than {PER_WEIGHT}" for each in larger
    )
    lines = (
        f"chosen for {run.budget}: preset {name}, {model.layers} layers of {model.width}"
        + (f" ({why})" if why else ""),
        f"  rows of {run.corpus.length} tokens, {run.batch} a step, at most {run.corpus.tokenizer_limit:,} pieces",
        f"  about {_short(seen / seconds)} tokens a second, {_short(seen)} in all"
        + (f", {seen / text:.2g} times the text" if text else "")
        + f", in {_short(_steps(run, tokens))} steps",
        f"  {_loss_line(name, seen)}",
    )
    return Choice(chosen, lines, tuple(_warnings(seen, text)))


def _steps(run: TrainConfig, tokens: Callable[[TrainConfig], float]) -> float:
    return tokens(run) / (run.batch * run.corpus.length)


def expected_loss(preset: str, tokens: float) -> float | None:
    """Return the loss that a preset reached after so many tokens, between measurements; None beyond them."""
    (least, *_), (most, *_) = REACHED[0], REACHED[-1]
    if preset != "tiny" or not least <= tokens <= most:
        return None
    at, losses = zip(*REACHED, strict=True)
    return float(np.interp(np.log(tokens), np.log(at), losses))


def _loss_line(preset: str, tokens: float) -> str:
    loss = expected_loss(preset, tokens)
    if loss is None:
        return "expected loss: not measured for this preset and time"
    return f"expected validation loss: about {loss:.2f}, WikiText-2's after as many tokens; other text has another"


def _warnings(seen: float, text: float | None) -> Iterator[str]:
    times = seen / text if text else 1.0
    if times > REREAD:
        yield (
            f"the text will be read about {_short(times)} times, and after {REREAD} another reading teaches next to "
            "nothing: give more text, or less time"
        )
    if times < 0.95:
        yield f"there is time for about {times:.0%} of the text: more time, or less text, for all of it"


def _short(number: float) -> str:
    """Return a number with two digits that count: 8.0 million."""
    for unit, name in ((1e9, " billion"), (1e6, " million")):
        if number >= unit:
            return f"{number / unit:.2g}{name}" if number < 10 * unit else f"{number / unit:,.0f}{name}"
    digits = 10 ** max(len(f"{number:.0f}") - 2, 0)
    return f"{round(number / digits) * digits:,.0f}"
