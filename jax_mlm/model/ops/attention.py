"""Attention with its gradient written out; the place where a kernel is chosen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

NEGATIVE = -1e30
"""Score of a pair that may not attend: its exponential is exactly 0 in float32."""


def attention_weights(
    q: Float[Array, "B H Q K"], k: Float[Array, "B H S K"], seen: Bool[Array, "B 1 Q S"]
) -> Float[Array, "B H Q S"]:
    """softmax(q · kᵀ where seen) in float32: what `attend` mixes by, for looking at it."""
    scores = jnp.einsum("BHQK,BHSK->BHQS", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(jnp.where(seen, scores, NEGATIVE), axis=-1)


@jax.custom_vjp
def attend(
    q: Float[Array, "B H Q K"],
    k: Float[Array, "B H S K"],
    v: Float[Array, "B H S K"],
    seen: Bool[Array, "B 1 Q S"],
    keep: Float[Array, "B H Q S"] | None,
) -> Float[Array, "B H Q K"]:
    """softmax(q · kᵀ where seen) · v, with the softmax in float32; `keep` multiplies its weights (dropout).

    The weights are divided by their sum after the mixing, on K columns instead of S, and the gradient of the softmax
    takes its row sums from the output (as FlashAttention does, Dao et al. 2022): fewer passes over the S × S scores.
    """
    return _attend_forward(q, k, v, seen, keep)[0]


def _attend_forward(q: Array, k: Array, v: Array, seen: Array, keep: Array | None) -> tuple[Array, Any]:
    scores = jnp.where(seen, jnp.einsum("BHQK,BHSK->BHQS", q, k, preferred_element_type=jnp.float32), NEGATIVE)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    kept = (weights if keep is None else weights * keep).astype(v.dtype)
    out = (jnp.einsum("BHQS,BHSK->BHQK", kept, v, preferred_element_type=jnp.float32) / total).astype(v.dtype)
    return out, (q, k, v, weights.astype(v.dtype), kept, total, out, keep)


def _attend_backward(saved: Any, g: Array) -> tuple[Array | None, ...]:
    q, k, v, weights, kept, total, out, keep = saved
    scaled = (g.astype(jnp.float32) / total).astype(v.dtype)
    dv = jnp.einsum("BHQS,BHQK->BHSK", kept, scaled)
    dkept = jnp.einsum("BHQK,BHSK->BHQS", scaled, v, preferred_element_type=jnp.float32)
    dweights = dkept if keep is None else dkept * keep
    row = (scaled.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    dscores = (weights * (dweights - row)).astype(q.dtype)
    dq = jnp.einsum("BHQS,BHSK->BHQK", dscores, k)
    dk = jnp.einsum("BHQS,BHQK->BHSK", dscores, q)
    return dq, dk, dv, None, None
