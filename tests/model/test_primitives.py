"""The gradients written out equal those that JAX derives from the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mlm.model.ops import dense as p
from jax_mlm.model.ops.attention import dense_attention


def normal(seed: int, *shape: int):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


SEEN = jnp.asarray((np.random.default_rng(0).random((2, 1, 7, 7)) < 0.6) | np.eye(7, dtype=bool))
KEEP = jnp.asarray((np.random.default_rng(1).random((2, 3, 7, 7)) < 0.5) * np.float32(2.0))
TARGETS = jnp.array([1, 4, 0, 2, 8])


def plain_attention(q, k, v, keep=1.0):
    scores = jnp.where(SEEN, jnp.einsum("BHQK,BHSK->BHQS", q, k), -jnp.inf)
    return jnp.einsum("BHQS,BHSK->BHQK", jax.nn.softmax(scores, -1) * keep, v)


def plain_norm(x, scale):
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
    return y * scale


QKV = [normal(i, 2, 3, 7, 4) for i in range(3)]
CASES = {
    "dense": (p.dense, lambda x, w: x @ w, [normal(0, 5, 3), normal(1, 3, 4)]),
    "bias": (p.add_bias, lambda x, b: x + b, [normal(0, 5, 3), normal(1, 3)]),
    "vocabulary": (p.vocabulary_logits, lambda x, t: x @ t.T, [normal(0, 5, 3), normal(1, 9, 3)]),
    "attention": (lambda q, k, v: dense_attention(q, k, v, SEEN, None), plain_attention, QKV),
    "attention, dropout": (
        lambda q, k, v: dense_attention(q, k, v, SEEN, KEEP),
        lambda q, k, v: plain_attention(q, k, v, KEEP),
        QKV,
    ),
    "norm": (lambda x, s: p.layer_norm(x, s, 1e-3), plain_norm, [3 + normal(0, 5, 6), normal(1, 6)]),
    "loss": (
        lambda x: p.cross_entropy(x, TARGETS),
        lambda x: -jax.nn.log_softmax(x)[np.arange(5), TARGETS],
        [5 * normal(0, 5, 9)],
    ),
    "gelu": (p.gelu, lambda x: jax.nn.gelu(x, approximate=False), [3 * normal(0, 50)]),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_the_plain_formula(name):
    ours, plain, arguments = CASES[name]
    shape = jax.eval_shape(plain, *arguments).shape
    g = normal(9, *shape)

    @jax.jit
    def both(g, *arguments):
        value, pull = jax.vjp(ours, *arguments)
        expected, expected_pull = jax.vjp(plain, *arguments)
        return (value, pull(g)), (expected, expected_pull(g))

    (value, pulled), (expected, expected_pulled) = both(g, *arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(pulled, expected_pulled, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_gelu_is_the_exact_one_far_from_zero():
    x = jnp.linspace(-12.0, 12.0, 1001)
    np.testing.assert_allclose(p.gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
