"""How many microbatches a step is computed in, where that is left to the memory of a device."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from jax_mlm.cost.memory import bytes_of, fewest_microbatches, least_activations, most_rows
from jax_mlm.data.batches import batch_of
from jax_mlm.errors import megabytes
from jax_mlm.parallel import hosts
from jax_mlm.parallel.compile import compiled_if_it_fits
from jax_mlm.parallel.devices import limit_of_device
from jax_mlm.parallel.mesh import layout_of
from jax_mlm.train.ahead import lowered
from jax_mlm.train.setup import Setup

SHARE = 0.9
"""The part of a device's memory that a step may take: validation, and what lies between arrays, need some too."""


def in_microbatches(setup: Setup) -> Setup:
    """Return the set-up with as few microbatches as fit a device's memory, if their number is left open, and print it.

    What a step needs is read from programs of this very run. A device that does not report its memory takes one.
    """
    config = setup.config
    if config.accumulate:
        return setup
    limit = min(map(int, hosts.gather(str(limit_of_device() or 0))))
    if not limit:
        return replace(setup, config=replace(config, accumulate=1))
    devices, example = layout_of(setup.mesh).rows, batch_of(setup.data.train, np.arange(1))

    @cache
    def need(parts: int) -> float:
        if least_activations(config, config.batch // parts // devices) > limit:
            return math.inf
        step = lowered(setup.task, replace(config, accumulate=parts), setup.mesh, example)
        return bytes_of(compiled_if_it_fits(step)).get("all", math.inf)

    parts = choose(need, config.batch, devices, SHARE * limit)
    whole = f"{megabytes(need(1))} of {megabytes(limit)}" if need(1) < math.inf else f"more than {megabytes(limit)}"
    print(
        f"--accumulate {parts}: {config.batch // parts:,} rows at a time; {config.batch:,} need {whole}",
        file=sys.stderr,
    )
    return replace(setup, config=replace(config, accumulate=parts))


def choose(need: Callable[[int], float], batch: int, devices: int, room: float) -> int:
    """Return the fewest microbatches that fit; of one row a device, if none do.

    Args:
        need: number of microbatches → bytes of the step on a device; infinite where it is known not to fit. It is
            asked of two numbers besides those, of which the second has at most half the rows of the first, and of the
            one that their line gives, and finer ones until one fits.
        devices: devices that compute different rows.
        room: bytes.
    """

    def measured(most: float) -> tuple[int, float]:
        parts = fewest_microbatches(batch, devices, most)
        return batch // parts, need(parts)

    rows, size = measured(batch)
    if size <= room:
        return 1
    too_many = rows
    while math.isinf(size) and rows > devices:
        rows, size = measured(rows / 4)
    fewer, less = measured(rows / 2 * min(room / size, 1))
    most = most_rows((rows, size), (fewer, less), room) if fewer < rows and size < math.inf else 0
    parts = fewest_microbatches(batch, devices, min(most, too_many - 1))
    while need(parts) > room and batch // parts > devices:
        parts = fewest_microbatches(batch, devices, batch // parts - 1)
    return parts
