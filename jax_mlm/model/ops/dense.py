"""The matrix products of the encoder and its loss, with their gradients written out.

JAX derives the gradient of a product's second operand as the transpose of a product; on CPU the transposition costs as
much as the product. Written out, each gradient is one product that comes out the right way round. On CPU, sums are
products with a vector too, which use the same fast code: XLA's reductions there first write out what is broadcast.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.lax import platform_dependent
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


def whole_products(dtype: DTypeLike) -> AbstractContextManager[object]:
    """Let what is traced multiply float32 as float32; GPUs and TPUs round it to fewer bits unless they are asked."""
    return jax.default_matmul_precision("highest") if jnp.dtype(dtype) == jnp.float32 else nullcontext()


def in_rows(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x; on CPU in 16 bits it then lies in memory as its shape says, the last axis being the nearest.

    XLA's fast kernels for CPU read both factors of a product row by row; a factor that lies otherwise gets slow ones.
    """
    if x.dtype.itemsize != 2:
        return x
    rows = Layout(major_to_minor=tuple(range(x.ndim)))
    return platform_dependent(x, cpu=lambda x: with_layout_constraint(x, rows), default=lambda x: x)


def sum_of_rows(x: Float[Array, "T D"]) -> Float[Array, " D"]:
    """Return Σ over T, in float32."""
    return platform_dependent(
        x,
        cpu=lambda x: jnp.einsum("T,TD->D", jnp.ones(x.shape[0], x.dtype), x, preferred_element_type=jnp.float32),
        default=lambda x: x.sum(0, dtype=jnp.float32),
    )


def dot_each_row(x: Float[Array, "T D"], with_: Float[Array, " D"]) -> Float[Array, "T 1"]:
    """Return each row's product with a vector."""
    return platform_dependent(
        x, with_, cpu=lambda x, y: (x @ y)[:, None], default=lambda x, y: (x * y).sum(-1, keepdims=True)
    )


def turned(x: Float[Array, "*B M N"]) -> Float[Array, "*B N M"]:
    """Return the transpose of the last two axes."""
    return in_rows(x.swapaxes(-1, -2))


@jax.custom_vjp
def dense(x: Float[Array, "T D"], kernel: Float[Array, "D F"]) -> Float[Array, "T F"]:
    """Return x · kernel."""
    return jnp.einsum("TD,DF->TF", x, kernel)


def _dense_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return dense(x, kernel), (x, kernel)


def _dense_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return g @ turned(kernel), turned(x) @ g


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def add_bias(x: Float[Array, "T F"], bias: Float[Array, " F"]) -> Float[Array, "T F"]:
    """Add the bias to every row."""
    return x + bias.astype(x.dtype)


def _add_bias_backward(like: Array, g: Array) -> tuple[Array, Array]:
    return g, sum_of_rows(g).astype(like.dtype)


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
    along = g * normal
    pull = (dot_each_row(g, scale) + normal * dot_each_row(along, scale)) / g.shape[-1]
    return ((g * scale - pull) * inverse).astype(x.dtype), sum_of_rows(along)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def vocabulary_logits(x: Float[Array, "T E"], table: Float[Array, "V E"]) -> Float[Array, "T V"]:
    """Return x · tableᵀ in float32."""
    return jnp.matmul(x, turned(table), preferred_element_type=jnp.float32)


def _logits_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, table = saved
    g = g.astype(x.dtype)
    return g @ table, turned(g) @ x


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
