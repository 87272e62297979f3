"""A permutation as a pure function of (seed, epoch, position): no table, any position at once."""

from __future__ import annotations

import numpy as np


def permuted(at: np.ndarray, n: int, seed: int, epoch: np.ndarray | int) -> np.ndarray:
    """Return where a permutation of 0 … n - 1, drawn by (seed, epoch), sends each position; no table is stored.

    A Feistel network over the next power of two, walked until it falls below n (Black & Rogaway 2002).
    """
    high = max(1, (n - 1).bit_length() // 2)
    low = max(1, (n - 1).bit_length() - high)
    key = _mixed(_mixed(np.uint64(seed % 2**64)) + np.broadcast_to(np.asarray(epoch, np.uint64), at.shape))
    value, walking = at.astype(np.uint64), np.ones(at.shape, bool)
    while walking.any():
        value[walking] = _feistel(value[walking], key[walking], high, low)
        walking = value >= n
    return value.astype(np.int64)


def _feistel(value: np.ndarray, key: np.ndarray, high: int, low: int) -> np.ndarray:
    left, right = value >> np.uint64(low), value & np.uint64((1 << low) - 1)
    for number in range(8):
        bits = high if number % 2 == 0 else low
        turned = left ^ (_mixed(right + key * np.uint64(2 * number + 1)) >> np.uint64(64 - bits))
        left, right = right, turned
    return left << np.uint64(low) | right


def _mixed(x: np.ndarray | np.uint64) -> np.ndarray:
    """Mix bits by SplitMix64's finaliser (Steele et al. 2014)."""
    x = np.atleast_1d(x) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
