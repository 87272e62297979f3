"""Attention to whole rows tile by tile: the scores of a few queries and keys at a time, forward and backward.

The softmax is that of FlashAttention (Dao et al. 2022, 2023): the forward pass keeps the logarithm of each query's sum
of weights, and the gradient computes the weights of a tile from it once more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import platform_dependent
from jaxtyping import Array, Bool, Float, Int, Shaped

from jax_mlm.model.ops.dense import in_rows, turned
from jax_mlm.model.ops.scores import NEGATIVE

TILE = 512
"""Bytes of a row of a tile's weights on CPU: of the sizes tried, the fastest in float32, and none faster in 16 bits."""
ELSEWHERE = 1024
"""Most tokens of a tile's side in float32 on other devices, whose kernels are for 16 bits: runs are validated in 32."""
SHORTEST = 1024
"""Tokens of the shortest row that goes by tiles; benchmarks/README.md has the measurement."""


def pays_in_tiles(length: int) -> bool:
    """Return whether a step of rows of this length takes less memory tile by tile, and about the same time or less."""
    return length >= SHORTEST


@jax.custom_vjp
def tiled_attention(
    q: Float[Array, "B H S K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    segments: Int[Array, "B S"],
) -> Float[Array, "B H S K"]:
    """Return what `dense_attention` does over `visible(segments, None)`, with the softmax in float32.

    On other devices loops are slow, so tiles are large; in 16 bits, where kernels exist, one tile holds the whole row.
    """
    return _forward(q, k, v, segments)[0]


class _Saved(NamedTuple):
    """What the gradient of attention needs."""

    q: Array
    k: Array
    v: Array
    segments: Array
    out: Array
    log_total: Array
    """ln Σ exp(score) of each query."""


def _forward(q: Array, k: Array, v: Array, segments: Array) -> tuple[Array, _Saved]:
    out, log_total = _in_tiles(_mixed, q, k, v, segments)
    return out, _Saved(q, k, v, segments, out, log_total)


def _backward(saved: _Saved, g: Array) -> tuple[Array | None, ...]:
    return *_in_tiles(_gradients, *saved, g), None


def _in_tiles(compute: Callable[..., tuple[Array, ...]], q: Array, *given: Array) -> tuple[Array, ...]:
    """Compute in the tiles that suit the platform."""
    length = q.shape[2]
    tiles = -(-length // ELSEWHERE) if q.dtype == jnp.float32 else 1
    small, large = (partial(compute, tile=size) for size in (TILE // q.dtype.itemsize, -(-length // tiles)))
    return platform_dependent(q, *given, cpu=small, default=large)


tiled_attention.defvjp(_forward, _backward)


def _mixed(q: Array, k: Array, v: Array, segments: Array, tile: int) -> tuple[Array, Array]:
    """Return the mixture [B, H, S, K] and ln Σ exp(score) [B, H, S, 1], for one tile of queries after the other."""
    B, H, S, K = q.shape
    documents = _tiles(segments[:, None, :, None], tile, -1)
    every_key = _tiles(k, tile), _tiles(v, tile), documents

    def of_queries(each: tuple[Array, ...]) -> tuple[Array, Array]:
        q, mine, meets = each
        q = in_rows(q)

        def add(state: tuple[Array, ...], k: Array, v: Array, theirs: Array) -> tuple[Array, ...]:
            top, total, mixed = state
            scores = _scores(q, in_rows(k), mine == theirs.swapaxes(-1, -2))
            higher = jnp.maximum(top, scores.max(-1, keepdims=True))
            weights, shrink = jnp.exp(scores - higher), jnp.exp(top - higher)
            added = _product(in_rows(weights.astype(v.dtype)), in_rows(v))
            return higher, total * shrink + weights.sum(-1, keepdims=True), mixed * shrink + added

        def visit(state: tuple[Array, ...], each: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
            meets, *keys = each
            return jax.lax.cond(meets, add, lambda state, *_: state, state, *keys), None

        # Half of NEGATIVE: keys that a query does not see have no weight before the first one that it sees, either.
        top = jnp.full((B, H, tile, 1), NEGATIVE / 2, jnp.float32)
        start = top, jnp.zeros_like(top), jnp.zeros((B, H, tile, K), jnp.float32)
        (top, total, mixed), _ = jax.lax.scan(visit, start, (meets, *every_key))
        return (mixed / total).astype(v.dtype), top + jnp.log(total)

    out, log_total = jax.lax.map(of_queries, (_tiles(q, tile), documents, _may_meet(documents)))
    return _joined(out, S), _joined(log_total, S)


def _gradients(
    q: Array, k: Array, v: Array, segments: Array, out: Array, log_total: Array, g: Array, tile: int
) -> tuple[Array, Array, Array]:
    """Return the gradients of q, k and v, for one tile of keys after the other.

    Scores lie key by key, [T, Q], so that of the products only that for the queries must turn them.
    """
    S = q.shape[2]
    documents = _tiles(segments[:, None, :, None], tile, -1)
    row = (g.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    of_each_query = (_tiles(x, tile).swapaxes(-1, -2) for x in (log_total, row))
    every_query = _tiles(q, tile), _tiles(g, tile), *of_each_query, documents

    def of_keys(dq: Array, each: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        k, v, theirs, meets = each
        k, v = in_rows(k), in_rows(v)

        def add(
            sums: tuple[Array, ...], q: Array, g: Array, log_total: Array, row: Array, mine: Array
        ) -> tuple[Array, ...]:
            dq, dk, dv = sums
            q, g = in_rows(q), in_rows(g)
            scores = _scores(k, q, theirs == mine.swapaxes(-1, -2))
            weights = in_rows(jnp.exp(scores - log_total).astype(v.dtype))
            dscores = in_rows(weights * (_scores(v, g) - row).astype(q.dtype))
            return dq + _product(turned(dscores), k), dk + _product(dscores, q), dv + _product(weights, g)

        def visit(sums: tuple[Array, Array], each: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
            meets, dq, *queries = each
            dq, dk, dv = jax.lax.cond(meets, add, lambda sums, *_: sums, (dq, *sums), *queries)
            return (dk, dv), dq

        none = jnp.zeros(k.shape, jnp.float32)
        (dk, dv), dq = jax.lax.scan(visit, (none, none), (meets, dq, *every_query))
        return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

    every_key = _tiles(k, tile), _tiles(v, tile), documents, _may_meet(documents)
    dq, (dk, dv) = jax.lax.scan(of_keys, jnp.zeros(every_query[0].shape, jnp.float32), every_key)
    return _joined(dq.astype(q.dtype), S), _joined(dk, S), _joined(dv, S)


def _scores(
    q: Float[Array, "B H Q K"], k: Float[Array, "B H T K"], seen: Bool[Array, "B 1 Q T"] | None = None
) -> Float[Array, "B H Q T"]:
    scores = jnp.einsum("BHQK,BHTK->BHQT", q, k, preferred_element_type=jnp.float32)
    return scores if seen is None else jnp.where(seen, scores, NEGATIVE)


def _product(weights: Float[Array, "B H Q T"], v: Float[Array, "B H T K"]) -> Float[Array, "B H Q K"]:
    return jnp.einsum("BHQT,BHTK->BHQK", weights, v, preferred_element_type=jnp.float32)


def _may_meet(documents: Int[Array, "N B 1 T 1"]) -> Bool[Array, "N N"]:
    """Return False where no token of one tile is in a document of the other, in any row; packed rows number them."""
    number = jnp.where(documents > 0, documents, jnp.iinfo(documents.dtype).max)  # padding comes last
    first, last = number.min((2, 3, 4)), number.max((2, 3, 4))
    return ((first[:, None] <= last) & (first <= last[:, None])).any(-1)


def _tiles(x: Shaped[Array, "B H S C"], tile: int, fill: int = 0) -> Shaped[Array, "N B H T C"]:
    """Return the row cut into tiles, the last one filled up."""
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % tile), (0, 0)), constant_values=fill)
    return jnp.moveaxis(padded.reshape(*x.shape[:2], -1, tile, x.shape[3]), 2, 0)


def _joined(tiles: Shaped[Array, "N B H T C"], length: int) -> Shaped[Array, "B H S C"]:
    """Return the row of these tiles, without what filled it up."""
    N, B, H, T, C = tiles.shape
    return in_rows(jnp.moveaxis(tiles, 0, 2).reshape(B, H, N * T, C)[:, :, :length])
