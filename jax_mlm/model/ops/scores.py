"""Attention by scores in memory: those of a whole row, or of a window block by block, with one gradient for both."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jax_mlm.model.ops.dense import in_rows, turned

NEGATIVE = -1e30
"""Score of a pair that may not attend: its exponential is exactly 0 in float32."""


def visible(
    segments: Int[Array, "B S"], window: int | None, at: Int[Array, "B Q"] | None = None
) -> Bool[Array, "B 1 Q S"]:
    """Return True where a query may see a key: the same document, and at most `window` tokens away.

    The queries stand at the positions `at`, or everywhere.
    """
    every = jnp.arange(segments.shape[1])
    at, mine = (every, segments) if at is None else (at, jnp.take_along_axis(segments, at, axis=1))
    seen = mine[:, :, None] == segments[:, None, :]
    if window is not None:
        seen &= jnp.abs(at[..., None] - every) <= window
    return seen[:, None]


@jax.custom_vjp
def dense_attention(
    q: Float[Array, "B H Q K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    seen: Bool[Array, "B _ Q S"],
    keep: Float[Array, "B H Q S"] | None,
) -> Float[Array, "B H Q K"]:
    """Return softmax(q · kᵀ where seen) · v, with the softmax in float32; `keep` multiplies its weights (dropout).

    The weights are divided by their sum after the mixing, on K columns instead of S, and the gradient of the softmax
    takes its row sums from the output (as FlashAttention does, Dao et al. 2022): fewer passes over the S × S scores.
    """
    return _dense_forward(q, k, v, seen, keep)[0]


class _Saved(NamedTuple):
    """What the gradient of attention needs."""

    q: Array
    k: Array
    v: Array
    weights: Array
    """Weights before the division by their sum."""
    kept: Array
    """The weights times the dropout."""
    total: Array
    out: Array
    keep: Array | None


def _dense_forward(q: Array, k: Array, v: Array, seen: Array, keep: Array | None) -> tuple[Array, _Saved]:
    scores = jnp.where(seen, jnp.einsum("BHQK,BHSK->BHQS", q, k, preferred_element_type=jnp.float32), NEGATIVE)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    kept = (weights if keep is None else weights * keep).astype(v.dtype)
    out = (jnp.einsum("BHQS,BHSK->BHQK", kept, v, preferred_element_type=jnp.float32) / total).astype(v.dtype)
    return out, _Saved(q, k, v, weights.astype(v.dtype), kept, total, out, keep)


def _dense_backward(saved: _Saved, g: Array) -> tuple[Array | None, ...]:
    q, k, v, weights, kept, total, out, keep = saved
    scaled = (g.astype(jnp.float32) / total).astype(v.dtype)
    dv = turned(kept) @ scaled
    dkept = jnp.einsum("BHQK,BHSK->BHQS", scaled, v, preferred_element_type=jnp.float32)
    dweights = dkept if keep is None else dkept * keep
    row = (scaled.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    dscores = weights * (dweights - row).astype(q.dtype)
    dq = jnp.einsum("BHQS,BHSK->BHQK", dscores, k)
    dk = turned(dscores) @ q
    return dq, dk, dv, None, None


dense_attention.defvjp(_dense_forward, _dense_backward)


SMALLEST = 32
"""Fewest queries of a block: products of smaller matrices are slow."""
FEWEST = 6
"""Fewest blocks of a row that pay on CPU: each has three times its width of keys, which are copied three times."""


def width_of_blocks(window: int) -> int:
    """Return the number of queries of a block: the keys that they see lie in it and in its two neighbours."""
    return max(window, SMALLEST)


def pays_in_blocks(length: int, window: int) -> bool:
    """Return whether rows of this length are computed faster block by block."""
    return length >= FEWEST * width_of_blocks(window)


def block_attention(
    q: Float[Array, "B H S K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    segments: Int[Array, "B S"],
    window: int,
) -> Float[Array, "B H S K"]:
    """Return what `dense_attention` does over `visible(segments, window)`, from scores of neighbouring blocks only."""
    B, H, S, K = q.shape
    block = width_of_blocks(window)
    documents = segments[:, None, :, None]
    near = np.abs(np.arange(block)[:, None] + block - np.arange(3 * block)) <= window
    seen = (_blocks(documents, block, -1) == _around(documents, block, -1).swapaxes(-1, -2)) & near
    seen = jnp.broadcast_to(seen, (B, H, *seen.shape[2:])).reshape(B, -1, block, 3 * block)
    q, k, v = (
        in_rows(x.reshape(B, -1, x.shape[3], K)) for x in (_blocks(q, block), _around(k, block), _around(v, block))
    )
    return dense_attention(q, k, v, seen, None).reshape(B, H, -1, K)[:, :, :S]


def _blocks(x: Shaped[Array, "B H S C"], block: int, fill: int = 0) -> Shaped[Array, "B H N Q C"]:
    """Return the row cut into blocks of queries, the last one filled up."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % block), (0, 0)), constant_values=fill)
    return padded.reshape(*x.shape[:2], -1, block, x.shape[3])


def _around(x: Shaped[Array, "B H S C"], block: int, fill: int = 0) -> Shaped[Array, "B H N S3 C"]:
    """Return each block of the row together with the one before it and the one after it."""
    padded = jnp.pad(_blocks(x, block, fill), ((0, 0), (0, 0), (1, 1), (0, 0), (0, 0)), constant_values=fill)
    return jnp.concatenate([padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:]], axis=3)
