"""The least memory that a training takes, counted from the configuration before anything of its size is made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jax_mlm.config import ModelConfig, TrainConfig
from jax_mlm.errors import UserError

if TYPE_CHECKING:
    from jax.stages import Compiled

FLOAT = 4
COPIES = 3
"""Numbers kept for each weight: itself, its gradient and at least one moment."""


def layers_weights(c: ModelConfig) -> int:
    """Count the weights of the layers' matrices."""
    layer = 4 * c.width * c.width + (3 if c.gated else 2) * c.width * c.ff_width
    return (c.layer_groups or c.layers) * layer


def weights_of(c: ModelConfig) -> int:
    """Count the weights of all matrices; norms and biases are too few to matter."""
    positions = c.max_length * c.width if c.positions == "learned" else 0
    return layers_weights(c) + c.vocab_size * c.table_width + positions + c.width * c.table_width


def check_memory(config: TrainConfig, device: int, data: int = 1, fsdp: int = 1, tensor: int = 1) -> None:
    """Refuse what can never fit: `device` is the memory of a device in bytes; the others are the axes of the mesh.

    Raises:
        UserError: it names the options to lower.
    """
    c = config.model
    need = COPIES * FLOAT * weights_of(c) // (fsdp * tensor)
    if need > device:
        raise UserError(
            f"--width {c.width}, --layers {c.layers}: the weights, their gradients and the optimizer need at least "
            f"{_gigabytes(need)}, and there are {_gigabytes(device)}: choose a smaller "
            "model, or divide it over more devices with --mesh"
        )
    rows = -(-config.batch // (config.accumulate * data * fsdp)) if config.accumulate else 1
    need = least_activations(config, rows)
    if need > device:
        raise UserError(
            f"--batch {config.batch} of --length {config.corpus.length}: {rows} rows at once need at least "
            f"{_gigabytes(need)}, and there are {_gigabytes(device)}: lower --batch or --length, or raise --accumulate"
        )


def least_activations(config: TrainConfig, rows: int) -> int:
    """Return the bytes of one value a layer, in bfloat16, that the gradient of so many rows needs at the least."""
    return rows * config.corpus.length * config.model.width * config.model.layers * 2


def bytes_of(compiled: Compiled | None) -> dict[str, int]:
    """Return what a device holds: the state with its batch, the step's temporaries, and all; empty of no program."""
    if compiled is None:
        return {}
    found = compiled.memory_analysis()
    assert found is not None
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    step = found.temp_size_in_bytes + max(new, 0)
    return {"state": found.argument_size_in_bytes, "step": step, "all": found.argument_size_in_bytes + step}


def most_rows(one: tuple[int, float], other: tuple[int, float], memory: float) -> float:
    """Return how many rows fit at a time, from two programs: (rows, bytes) each. Memory grows in proportion.

    Infinite where it does not grow.
    """
    (rows, size), (fewer, less) = one, other
    slope = (size - less) / (rows - fewer)
    return rows + (memory - size) / slope if slope > 0 else math.inf


def fewest_microbatches(batch: int, devices: int, most: float) -> int:
    """Return the fewest microbatches of at most so many rows that divide over the devices; else of one row a device."""
    every = (parts for parts in range(1, batch // devices + 1) if batch % (parts * devices) == 0)
    return next((parts for parts in every if batch // parts <= most), batch // devices)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.0f} GB" if size < 1e15 else f"{size / 1e9:.0e} GB"
