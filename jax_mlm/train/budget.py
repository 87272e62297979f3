"""What a time budget is spent on: the preset and its batch, by the speed of the devices and the size of the text.

Every choice is a default that an option overrides. `docs/recipe.md` shows what the figures here were measured with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jax_mlm.cli.options import build
from jax_mlm.cli.parser import Given
from jax_mlm.config import TrainConfig
from jax_mlm.cost.memory import check_memory, layers_weights
from jax_mlm.data.alphabet import alphabet_tokenizer
from jax_mlm.data.decoding import COMPRESSED
from jax_mlm.data.sources import STDIN, find_sources
from jax_mlm.data.tokenizer import load_tokenizer
from jax_mlm.errors import UserError
from jax_mlm.parallel.compile import compute_dtype
from jax_mlm.parallel.devices import limit_of_device, memory_of_device
from jax_mlm.parallel.mesh import Layout, read_layout
from jax_mlm.presets import PRESETS, preset_for
from jax_mlm.train.speed import flops_of_a_step, flops_of_products, flops_of_token
from jax_mlm.train.survey import REREAD

SIZES = ("nano", "micro", "tiny", "small", "base", "large")
"""The presets of our own that are chosen among, the smallest first."""
PER_WEIGHT = 8
"""Tokens for each weight of the layers that a preset has to learn from; between what was measured: see the recipe."""
FEW_STEPS, LEAST_BATCH = 300, 8
"""Steps below which the batch is halved, where half of it and more steps are worth as much to `tiny`; and how far."""
OF_PRODUCTS = 0.4
"""What a training step on an accelerator is taken to have of the rate of matrix products."""
AT_ONCE = 8192
"""Tokens of a microbatch on a device that does not give the size of its memory."""
BYTES_A_TOKEN, UNPACKED = 4.5, 3.0
"""Bytes of text in a token that is not a letter, and of text in a byte of a compressed file."""
REACHED: Mapping[str, Sequence[tuple[float, float]]] = {
    "nano": ((2.72e6, 3.84), (1.09e7, 3.29)),
    "micro": ((1.14e6, 4.43), (5.33e6, 3.26), (1.21e7, 2.95)),
}
"""Tokens that presets learned from on WikiText-2, each in a run of its own, and its validation loss after them."""


class Machine(NamedTuple):
    """The devices that a run has."""

    flops: float
    """Floating-point operations a second in training steps, of all devices together."""
    memory: int
    """Bytes of a device."""
    bounded: bool
    """Whether microbatches are chosen by that memory."""
    layout: Layout


class Choice(NamedTuple):
    """The chosen preset, with its batch, and the lines to print."""

    config: TrainConfig
    lines: tuple[str, ...]


def measured(given: Given) -> Machine:
    """Return the devices, after timing what they compute in the type of the run for a few seconds.

    Raises:
        UserError: `--mesh` does not fit them.
    """
    layout = read_layout(given.get("mesh", ""), jax.device_count())
    dtype = compute_dtype(TrainConfig(dtype=given.get("dtype", "auto")))
    if jax.default_backend() == "cpu":  # whose simulated devices share the processor
        flops = flops_of_a_step(dtype) * jax.process_count()
    else:
        flops = OF_PRODUCTS * flops_of_products(dtype) * jax.device_count()
    return Machine(flops, memory_of_device(), limit_of_device() is not None, layout)


def text_tokens(data: Sequence[str], kind: str = "auto") -> float | None:
    """Estimate the tokens, of a kind of tokenizer, of the files that `--data` names; None for standard input.

    Raises:
        UserError: there is no such text.
    """
    if STDIN in data:
        return None
    packed = (*COMPRESSED, ".parquet")
    sizes = (
        path.stat().st_size * (UNPACKED if path.suffix.lower() in packed else 1.0) for path in find_sources(data).files
    )
    return sum(sizes) / (1.0 if kind == "protein" else BYTES_A_TOKEN)


def _with_vocabulary(run: TrainConfig, entries: int = 0) -> TrainConfig:
    """Return the run with the entries of its vocabulary: those known, or the most that are learned."""
    if run.corpus.tokenizer_kind == "protein":
        entries = entries or alphabet_tokenizer().get_vocab_size()
    found = entries or run.model.vocab_size or run.corpus.tokenizer_size or run.corpus.tokenizer_limit
    return replace(run, model=replace(run.model, vocab_size=found))


def choose(given: Given, seconds: float, machine: Machine, text: float | None) -> Choice:
    """Choose what to train in some seconds: the largest size that has enough to learn from.

    Args:
        given: the options of the command line, which override the preset's.
        seconds: the budget.
        machine: what computes.
        text: tokens there are to learn from; None if that is not known.

    Raises:
        UserError: the tokenizer that is given cannot be read.
    """
    entries = load_tokenizer(Path(given["tokenizer"])).get_vocab_size() if given.get("tokenizer") else 0
    presets, runs = dict[str, TrainConfig](), dict[str, TrainConfig]()
    for name in SIZES:
        with suppress(UserError):  # the options do not fit this size, or it does not fit the memory
            presets[name] = _preset(name, given, machine)
            run = _with_vocabulary(build(TrainConfig, given, presets[name]), entries)
            check_memory(run, machine.memory, *machine.layout)
            runs[name] = run
    if not runs:
        return Choice(replace(preset_for(SIZES[0], given), steps=0), ())  # which will be refused with the reason
    weights = {name: layers_weights(run.model) for name, run in runs.items()}
    seen = {name: seconds * machine.flops / flops_of_token(run) for name, run in runs.items()}
    useful = {name: min(tokens, tokens if text is None else REREAD * text) for name, tokens in seen.items()}
    smallest = [name for name in runs if weights[name] == min(weights.values())]
    enough = [name for name in runs if useful[name] >= PER_WEIGHT * weights[name]] or smallest
    own = {name: replace(run.model, vocab_size=0) == PRESETS[name].model for name, run in runs.items()}
    name = max(enough, key=lambda name: (weights[name], own[name]))  # a shape that is spelled out is that preset's
    larger = next((other for other in runs if weights[other] > weights[name]), None)

    def steps(batch: int) -> float:
        return seen[name] / (batch * runs[name].corpus.length)

    unit, batch = _unit(given, machine), runs[name].batch
    while "batch" not in given and batch // 2 >= LEAST_BATCH and batch // 2 % unit == 0 and steps(batch) < FEW_STEPS:
        batch //= 2
    chosen = replace(presets[name], batch=batch, accumulate=_parts(presets[name], batch, given, machine))
    run, times = build(TrainConfig, given, chosen), None if text is None else seen[name] / text
    halved = f" (halved from {runs[name].batch}, for more steps)" if batch < runs[name].batch else ""
    of_text = ", of a text whose size is not known" if times is None else f", {_short(times)} times the text"
    why = "" if larger is None else _why_not(larger, PER_WEIGHT * weights[larger], seen[larger], text)
    lines = (
        f"chosen for {run.budget}: preset {name}, {run.model.layers} layers of {run.model.width}{why}",
        f"  {batch} rows of {run.corpus.length} tokens a step{halved}, {_pieces(run)}",
        f"  about {_short(seen[name] / seconds)} tokens a second: {_short(seen[name])}{of_text}, "
        f"in {_short(max(steps(batch), 1))} steps",
        f"  {_loss_line(run, seen[name])}",
    )
    return Choice(chosen, lines)


def _why_not(larger: str, need: float, time_for: float, text: float | None) -> str:
    """Return why a larger size was not chosen: the time, or the text."""
    limit = f"there is time for {_short(time_for)}"
    if text is not None and REREAD * text < time_for:
        limit = f"{REREAD} readings of the text are {_short(REREAD * text)}"
    return f"; {larger} would need {_short(need)} tokens, and {limit}"


def _unit(given: Given, machine: Machine) -> int:
    """Return what a batch is a multiple of: the rows of all devices, in as many microbatches as are asked for."""
    return machine.layout.rows * max(given.get("accumulate", 1), 1)


def _preset(name: str, given: Given, machine: Machine) -> TrainConfig:
    """Return a preset for a budget, with a batch that divides over the devices.

    Raises:
        UserError: the batch that is given is refused.
    """
    preset = replace(preset_for(name, given), steps=0, accumulate=1)
    unit = _unit(given, machine)
    batch = given.get("batch", -(-preset.batch // unit) * unit)
    return build(TrainConfig, {"batch": batch, "accumulate": _parts(preset, batch, given, machine)}, preset)


def _parts(preset: TrainConfig, batch: int, given: Given, machine: Machine) -> int:
    """Return in how many microbatches a batch is computed, if that is not given; 0 leaves it to the memory."""
    if machine.bounded or "accumulate" in given:
        return 0
    parts, rows = 1, machine.layout.rows
    while batch // parts // rows * preset.corpus.length > AT_ONCE and batch % (2 * parts * rows) == 0:
        parts *= 2
    return parts


def expected_loss(run: TrainConfig, tokens: float) -> float | None:
    """Return the loss that the preset reached after so many tokens, between measurements; None for other runs."""
    preset, reached = PRESETS[run.preset], REACHED.get(run.preset, ())
    same = replace(preset.corpus, **{name: getattr(run.corpus, name) for name in INDIFFERENT})
    if run.tokenizer or (run.batch, run.embeddings) != (preset.batch, preset.embeddings):
        return None
    if (run.model, run.mask, run.optim, run.corpus) != (preset.model, preset.mask, preset.optim, same):
        return None
    if not reached or not reached[0][0] <= tokens <= reached[-1][0]:
        return None
    at, losses = zip(*reached, strict=True)
    return float(np.interp(np.log(tokens), np.log(at), losses))


INDIFFERENT = ("text_field", "document", "dedup", "valid_fraction", "workers", "cache")
"""Fields of the corpus that do not change what a loss means."""


def _loss_line(run: TrainConfig, tokens: float) -> str:
    loss = expected_loss(run, tokens)
    if loss is None:
        return "expected loss: not measured for these options and this time"
    return f"expected validation loss: about {loss:.2f}, WikiText-2's after as many tokens; other text has another"


def _pieces(run: TrainConfig) -> str:
    if run.tokenizer:
        return f"the tokenizer {run.tokenizer}"
    if run.corpus.tokenizer_kind == "protein":
        return "a token a letter"
    size = run.corpus.tokenizer_size
    return f"{size:,} pieces" if size else f"at most {run.corpus.tokenizer_limit:,} pieces"


def _short(number: float) -> str:
    """Return a number with two digits that count, or its millions: 0.012, 3.4, 8,000, 8.1 million, 123 million."""
    for unit, name in ((1e9, " billion"), (1e6, " million")):
        if number >= unit:
            return f"{number / unit:.2g}{name}" if number < 10 * unit else f"{number / unit:,.0f}{name}"
    if number < 10:
        return f"{number:.2g}"
    digits = 10 ** (len(f"{number:.0f}") - 2)
    return f"{round(number / digits) * digits:,}"
