"""The least memory that a training takes, counted from the configuration before anything of its size is made."""

from __future__ import annotations

from jax_mlm.config import ModelConfig, TrainConfig
from jax_mlm.errors import UserError

FLOAT = 4
COPIES = 3
"""Numbers kept for each weight: itself, its gradient and at least one moment."""


def weights_of(c: ModelConfig) -> int:
    """Count the weights of the matrices; norms and biases are too few to matter."""
    layer = 4 * c.width * c.width + (3 if c.gated else 2) * c.width * c.ff_width
    positions = c.max_length * c.width if c.positions == "learned" else 0
    return (c.layer_groups or c.layers) * layer + c.vocab_size * c.table_width + positions + c.width * c.table_width


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
    rows = -(-config.batch // (config.accumulate * data * fsdp))
    need = rows * config.corpus.length * c.width * c.layers * 2  # bfloat16, one value a layer for the gradient
    if need > device:
        raise UserError(
            f"--batch {config.batch} of --length {config.corpus.length}: {rows} rows at once need at least "
            f"{_gigabytes(need)}, and there are {_gigabytes(device)}: lower --batch or --length, or raise --accumulate"
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.0f} GB" if size < 1e15 else f"{size / 1e9:.0e} GB"
