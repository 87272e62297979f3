"""Attention, and the one place where its kernel is chosen."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import platform_dependent
from jaxtyping import Array, Bool, Float, Int, Key

from jax_mlm.model.ops.dense import in_rows
from jax_mlm.model.ops.kernels import OURS, OWN, Kernels, by_kernel
from jax_mlm.model.ops.scores import (
    NEGATIVE,
    block_attention,
    dense_attention,
    pays_in_blocks,
    visible,
    width_of_blocks,
)
from jax_mlm.model.ops.tiles import pays_in_tiles, tiled_attention


class Drop(NamedTuple):
    """Dropout with one key per row, so that the batch's layout over devices changes nothing."""

    rate: float
    row_keys: Key[Array, " B"]
    site: int
    """Number of this dropout in the network, folded into the row's key."""

    def kept(self, shape: tuple[int, ...]) -> Bool[Array, "B ..."]:
        """Draw True with probability 1 − rate for each element of rows of this shape."""
        size = math.prod(shape)

        def draw(key: Key[Array, ""]) -> Bool[Array, "..."]:
            words = jax.random.bits(jax.random.fold_in(key, self.site), ((size + 1) // 2,))
            halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)
            return (halves[:size] >= min(round(self.rate * 2**16), 2**16 - 1)).reshape(shape)

        return jax.vmap(draw)(self.row_keys)


@jax.custom_vjp
def split_heads(x: Float[Array, "B S C H K"]) -> tuple[Array, ...]:
    """Return C arrays [B, H, S, K]: of queries, keys and values, those that there are; each way is one copy."""
    return tuple(in_rows(x.transpose(2, 0, 3, 1, 4)))


def _split_backward(_: None, g: tuple[Array, ...]) -> tuple[Array]:
    return (in_rows(in_rows(jnp.stack(g)).transpose(1, 3, 0, 2, 4)),)


split_heads.defvjp(lambda x: (split_heads(x), None), _split_backward)


@jax.custom_vjp
def quarter_turn(x: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """Return (−second half, first half) of the last axis: on CPU by a product, since XLA joins halves slowly there."""
    return platform_dependent(x, cpu=_turned_by_product, default=_turned_by_halves)


def _turned_by_halves(x: Array) -> Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def _turned_by_product(x: Array) -> Array:
    half = np.arange(x.shape[-1] // 2)
    turn = np.zeros((2 * half.size, 2 * half.size), x.dtype)
    turn[half + half.size, half], turn[half, half + half.size] = -1, 1
    apart = jax.lax.optimization_barrier  # what comes before and after would be computed element by element
    return apart(apart(x) @ turn)


quarter_turn.defvjp(lambda x: (quarter_turn(x), None), lambda _, g: (-quarter_turn(g),))


def attention_weights(
    q: Float[Array, "B H Q K"],
    k: Float[Array, "B H S K"],
    segments: Int[Array, "B S"],
    window: int | None,
    at: Int[Array, "B Q"] | None = None,
) -> Float[Array, "B H Q S"]:
    """Return softmax(q · kᵀ where visible) in float32: the weights that `attend` mixes by, for inspection."""
    scores = jnp.einsum("BHQK,BHSK->BHQS", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(jnp.where(visible(segments, window, at), scores, NEGATIVE), axis=-1)


def is_dense(queries: int, length: int, window: int | None, drop: Drop | None, kernels: Kernels) -> bool:
    """Return whether `attend` computes all scores of so many queries: they may then stand at some positions only."""
    if drop is not None:
        return True
    if window is None:
        in_parts = pays_in_tiles(math.isqrt(queries * length))
    else:
        in_parts = pays_in_blocks(length, window) and queries > 3 * width_of_blocks(window)
    return kernels.of(window) == OWN and not in_parts


def attend(
    q: Float[Array, "B H Q K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    segments: Int[Array, "B S"],
    window: int | None,
    drop: Drop | None = None,
    kernels: Kernels = OURS,
    at: Int[Array, "B Q"] | None = None,
) -> Float[Array, "B H Q K"]:
    """Return softmax(q · kᵀ) · v over the visible keys, by the kernel that was chosen for the run, or by our own.

    Ours is the dense one; where the row is long, it goes block by block in layers with a window, and tile by tile in
    the others. Dropout is drawn for all pairs, so that it is always dense.

    Args:
        q, k, v: queries (scaled already), keys and values.
        segments: document of each token; 0 is padding. Tokens of one document see each other.
        window: how many tokens away a key may be; None sets no limit.
        drop: dropout of the attention probabilities, which only ours has.
        kernels: what `choose_attention` has chosen; by default, ours.
        at: positions of the queries, where `is_dense`; None where there is one at each position.
    """
    B, S = segments.shape
    if not is_dense(q.shape[2], S, window, drop, kernels):
        if kernels.of(window) != OWN:
            return by_kernel(q, k, v, segments, window, kernels)
        return tiled_attention(q, k, v, segments) if window is None else block_attention(q, k, v, segments, window)
    keep = None
    if drop is not None:
        shape = (B, q.shape[1], q.shape[2], S)
        ones = jnp.ones(shape, q.dtype)
        keep = jnp.where(drop.kept((math.prod(shape[1:]),)).reshape(shape), ones / (1 - drop.rate), 0).astype(q.dtype)
    return dense_attention(q, k, v, visible(segments, window, at), keep)
