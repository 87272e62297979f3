"""FLOPs of a training step, counted from the configuration, and the peak rates of devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from jax_mlm.config import ModelConfig

PEAK_FLOPS: Mapping[str, float] = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
"""Dense bfloat16 peak of one device by the start of its name, the longest one, from the vendors' data sheets."""


def peak_flops(device_kind: str) -> float | None:
    """Return a device's peak in floating-point operations per second; None if it is not known."""
    known = max((name for name in PEAK_FLOPS if device_kind.startswith(name)), key=len, default=None)
    return None if known is None else PEAK_FLOPS[known]


def document_lengths(segments: np.ndarray) -> np.ndarray:
    """Return the tokens of each document of segments [B, S], where they lie side by side; padding, 0, is none."""
    begins = np.ones(segments.shape, bool)
    np.not_equal(segments[:, 1:], segments[:, :-1], out=begins[:, 1:])
    at = np.flatnonzero(begins)
    return np.diff(at, append=segments.size)[segments.reshape(-1)[at] > 0]


def attending_pairs(lengths: np.ndarray, window: int | None) -> int:
    """Count the (query, key) pairs within documents of these lengths, at most `window` tokens apart."""
    if window is None:
        return int((lengths * lengths).sum())
    reach = np.minimum(window, lengths - 1)
    # Of those that the ends of a document would see, reach · (reach + 1) lie outside of it.
    return int((lengths * (2 * reach + 1) - reach * (reach + 1)).sum())


def layers_pairs(config: ModelConfig, lengths: np.ndarray) -> int:
    """Count the pairs that attend in all layers together, each with its own window."""
    windows = Counter(map(config.window, range(config.layers)))
    return sum(layers * attending_pairs(lengths, window) for window, layers in windows.items())


def train_flops(config: ModelConfig, tokens: float, pairs: float, targets: float, states: float | None = None) -> float:
    """Count forward and backward operations: 6 per weight and token, 12·D per attending pair.

    Args:
        tokens: real tokens, padding not counted.
        pairs: (query, key) pairs that attend, in all layers together; those of the last layer count whole.
        targets: positions at which the vocabulary projection is computed.
        states: positions at which the last layer computes more than keys and values; None is the targets alone.
    """
    c = config
    keys_and_values = 2 * c.width * c.width
    layer = 4 * c.width * c.width + (3 if c.gated else 2) * c.width * c.ff_width
    widen = c.table_width * c.width if c.embedding_width else 0
    head = c.width * c.table_width + c.table_width * c.vocab_size
    last = tokens * keys_and_values + (targets if states is None else states) * (layer - keys_and_values)
    return 6 * (tokens * ((c.layers - 1) * layer + widen) + last + targets * head) + 12 * c.width * pairs
