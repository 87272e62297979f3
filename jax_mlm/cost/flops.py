"""FLOPs of a training step, counted from the configuration, and the peak rates of devices."""

from __future__ import annotations

from collections.abc import Mapping

from jax_mlm.config import ModelConfig

PEAK_FLOPS: Mapping[str, float] = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
"""Dense bfloat16 peak of one device by the start of its name, from the vendors' data sheets."""


def peak_flops(device_kind: str) -> float | None:
    """Return a device's peak in floating-point operations per second; None if it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if device_kind.startswith(name)), None)


def train_flops(config: ModelConfig, tokens: float, pairs: float, targets: float) -> float:
    """Count forward and backward operations: 6 per weight and token, 12·D per attending pair and layer.

    Args:
        tokens: real tokens, padding not counted.
        pairs: (query, key) pairs that attend to each other in one layer.
        targets: positions at which the vocabulary projection is computed.
    """
    c = config
    layer = 4 * c.width * c.width + (3 if c.gated else 2) * c.width * c.ff_width
    widen = c.table_width * c.width if c.embedding_width else 0
    head = c.width * c.table_width + c.table_width * c.vocab_size
    return 6 * tokens * (c.layers * layer + widen) + 12 * c.layers * c.width * pairs + 6 * targets * head
