"""The gradients written out equal those that JAX derives from the plain formulas."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import SHAPE, shapes_of

from jax_mlm.config import ModelConfig
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import make_forward
from jax_mlm.model.ops import dense as p
from jax_mlm.model.ops.attention import quarter_turn, split_heads
from jax_mlm.model.ops.scores import dense_attention


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
    "heads": (
        lambda x: jnp.stack(split_heads(x)),
        lambda x: jnp.stack([x[:, :, i].swapaxes(1, 2) for i in range(3)]),
        [normal(0, 2, 5, 3, 4, 6)],
    ),
    "quarter turn": (
        quarter_turn,
        lambda x: jnp.concatenate([-x[..., 3:], x[..., :3]], -1),
        [normal(0, 2, 4, 5, 6)],
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
    x = np.linspace(-12.0, 12.0, 1001, dtype=np.float32)
    ours, exact = jax.jit(lambda x: (p.gelu(x), jax.nn.gelu(x, approximate=False)))(x)
    np.testing.assert_allclose(ours, exact, atol=1e-6)


@pytest.mark.parametrize("name", ["dense", "vocabulary", "attention", "heads", "quarter turn", "norm"])
def test_16_bits_give_the_values_and_gradients_of_32_rounded(name):
    """On CPU they take other ways through memory."""
    ours, plain, arguments = CASES[name]
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in arguments]
    g = normal(9, *jax.eval_shape(plain, *arguments).shape)

    @jax.jit
    def both(g, *arguments):
        value, pull = jax.vjp(ours, *arguments)
        expected, expected_pull = jax.vjp(plain, *(x.astype(jnp.float32) for x in arguments))
        return (value, *pull(g.astype(value.dtype))), (expected, *expected_pull(g))

    for a, b in zip(*both(g, *rounded), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=0.03, atol=0.03 * np.abs(b).max())


def test_a_gpu_multiplies_nothing_in_32_bits():
    """What is written as a product for the sake of processors is none there, and every factor has 16 bits."""
    config = ModelConfig(**SHAPE)
    forward, params = make_forward(config, jnp.bfloat16), shapes_of(config)
    rows = jax.ShapeDtypeStruct((2, 16), jnp.int32)

    def loss(params, rows):
        logits = forward(params, Inputs(rows, rows, rows), rows[:, :3])
        return p.cross_entropy(logits.reshape(6, -1), jnp.zeros(6, jnp.int32)).sum()

    text = jax.jit(jax.grad(loss)).trace(params, rows).lower(lowering_platforms=("cuda",)).as_text()
    products = re.findall(r"stablehlo.dot_general .*: \(tensor<\S*x([a-z]\w+)>, tensor<\S*x([a-z]\w+)>\)", text)
    assert len(products) == 3 * (6 * config.layers + 1 + 2), "the queries of the last layer are apart"
    assert {kind for pair in products for kind in pair} == {"bf16"}
    assert "LayoutConstraint" not in text
