"""Queries, keys and values over random documents, and the mixture by the scores of all pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jax_mlm.model.ops.scores import dense_attention, visible


def documents(rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
    """Draw rows of up to four documents, with padding at the end of some."""
    cuts = np.sort(rng.integers(1, length + 1, (rows, 4)), axis=1)
    segments = 1 + (np.arange(length) >= cuts[:, :3, None]).sum(1)
    return np.where(np.arange(length) < np.maximum(cuts[:, 3:], length // 2), segments, 0).astype(np.int32)


def drawn(rows: int, heads: int, length: int, width: int, dtype=jnp.float32, seed: int = 0):
    """Draw queries, keys, values, a gradient of their mixture, and documents."""
    rng = np.random.default_rng(seed)
    q, k, v, g = (rng.normal(size=(rows, heads, length, width)) for _ in range(4))
    given = (jnp.asarray(x, dtype) for x in (q * width**-0.5, k, v, g))
    return *given, jnp.asarray(documents(rng, rows, length))


def mixed(attention, q, k, v, g):
    """Return the mixture and its gradients, in float32."""
    out, pull = jax.vjp(attention, q, k, v)
    return [x.astype(jnp.float32) for x in (out, *pull(g))]


def dense(segments, window):
    return lambda q, k, v: dense_attention(q, k, v, visible(segments, window), None)
