"""The matrix products of the encoder and its loss, with their gradients written out.

JAX derives the gradient of a product's second operand as the transpose of a product; on CPU the transposition costs as
much as the product. Written out, each gradient is one product that comes out the right way round, and sums over rows
are products with ones, which use the same fast code.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def dense(x: Float[Array, "T D"], kernel: Float[Array, "D F"]) -> Float[Array, "T F"]:
    """Return x · kernel."""
    return jnp.einsum("TD,DF->TF", x, kernel)


def _dense_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return dense(x, kernel), (x, kernel)


def _dense_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return jnp.einsum("TF,DF->TD", g, kernel), jnp.einsum("TD,TF->DF", x, g)


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def add_bias(x: Float[Array, "T F"], bias: Float[Array, " F"]) -> Float[Array, "T F"]:
    """Add the bias to every row."""
    return x + bias.astype(x.dtype)


def _add_bias_backward(like: Array, g: Array) -> tuple[Array, Array]:
    ones = jnp.ones(g.shape[0], g.dtype)
    return g, jnp.einsum("T,TF->F", ones, g, preferred_element_type=jnp.float32).astype(like.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_backward)


def _layer_norm(x: Float[Array, "T D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "T D"]:
    """Return (x − mean) / √(variance + eps) · scale, computed in float32."""
    return _layer_norm_forward(x, scale, eps)[0]


layer_norm = jax.custom_vjp(_layer_norm, nondiff_argnums=(2,))


def _layer_norm_forward(x: Array, scale: Array, eps: float) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(y - mean).mean(-1, keepdims=True) + eps)
    return ((y - mean) * inverse * scale).astype(x.dtype), (x, scale, mean, inverse)


def _layer_norm_backward(eps: float, saved: tuple[Array, Array, Array, Array], g: Array) -> tuple[Array, Array]:
    x, scale, mean, inverse = saved
    normal = (x.astype(jnp.float32) - mean) * inverse
    g = g.astype(jnp.float32)
    dnormal = g * scale
    pull = dnormal.mean(-1, keepdims=True) + normal * (dnormal * normal).mean(-1, keepdims=True)
    dscale = jnp.einsum("T,TD->D", jnp.ones(g.shape[0], jnp.float32), g * normal)
    return ((dnormal - pull) * inverse).astype(x.dtype), dscale


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def vocabulary_logits(x: Float[Array, "T E"], table: Float[Array, "V E"]) -> Float[Array, "T V"]:
    """Return x · tableᵀ in float32."""
    return jnp.einsum("TE,VE->TV", x, table, preferred_element_type=jnp.float32)


def _logits_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, table = saved
    g = g.astype(x.dtype)
    return jnp.einsum("TV,VE->TE", g, table), jnp.einsum("TV,TE->VE", g, x)


vocabulary_logits.defvjp(lambda x, table: (vocabulary_logits(x, table), (x, table)), _logits_backward)


@jax.custom_vjp
def cross_entropy(logits: Float[Array, "T V"], targets: Int[Array, " T"]) -> Float[Array, " T"]:
    """Return −ln softmax(logits)[target], in nats, in float32."""
    return _cross_entropy_forward(logits, targets)[0]


def _cross_entropy_forward(logits: Array, targets: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    top = logits.max(-1, keepdims=True)
    log_total = jnp.log(jnp.exp(logits - top).sum(-1)) + top[:, 0]
    at_target = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return log_total - at_target, (logits, targets, log_total)


def _cross_entropy_backward(saved: tuple[Array, Array, Array], g: Array) -> tuple[Array, np.ndarray]:
    logits, targets, log_total = saved
    hit = jnp.arange(logits.shape[-1]) == targets[:, None]
    gradient = (jnp.exp(logits - log_total[:, None]) - hit) * g[:, None]
    return gradient, np.zeros(targets.shape, jax.dtypes.float0)


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def gelu(x: Array) -> Array:
    """Return x · Φ(x), exactly, through erf: unlike erfc, it has no exponential and no branches."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.float32(0.5**0.5).astype(x.dtype)))
