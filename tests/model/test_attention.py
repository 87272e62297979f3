"""Every way to compute attention gives what the scores of all pairs give."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.attention import dense, drawn, mixed

from jax_mlm.model.ops.attention import Drop, attend
from jax_mlm.model.ops.scores import block_attention


@pytest.mark.parametrize(
    ("length", "window"),
    [(200, 32), (192, 32), (97, 0), (97, 1), (50, 5), (200, 70), (32, 32), (7, 300), (1, 0)],
)
def test_blocks_of_a_window_equal_the_scores_of_all_pairs(length, window):
    q, k, v, g, segments = drawn(3, 2, length, 8, seed=length + window)

    ways = partial(block_attention, segments=segments, window=window), dense(segments, window)
    ours, theirs = (jax.jit(partial(mixed, way))(q, k, v, g) for way in ways)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_blocks_in_16_bits_round_as_the_scores_of_all_pairs_do():
    q, k, v, g, segments = drawn(2, 2, 200, 8, jnp.bfloat16)
    exact = mixed(dense(segments, 20), *(x.astype(jnp.float32) for x in (q, k, v, g)))
    errors = [
        [float(jnp.abs(a - b).max()) for a, b in zip(jax.jit(partial(mixed, way))(q, k, v, g), exact, strict=True)]
        for way in (partial(block_attention, segments=segments, window=20), dense(segments, 20))
    ]
    assert all(ours <= 3 * theirs for ours, theirs in zip(*errors, strict=True)), errors


@pytest.mark.parametrize(("length", "window", "in_blocks"), [(192, 32, True), (191, 32, False), (512, None, False)])
def test_a_long_row_makes_no_scores_of_all_pairs(length, window, in_blocks):
    q, k, v, _, segments = drawn(2, 2, length, 8)
    text = jax.jit(jax.grad(lambda q: attend(q, k, v, segments, window).sum())).lower(q).as_text()
    assert (f"x{length}x{length}x" not in text) == in_blocks
    drop = Drop(0.1, jax.random.split(jax.random.key(0), 2), 0)
    text = jax.jit(lambda q: attend(q, k, v, segments, window, drop)).lower(q).as_text()
    assert f"x{length}x{length}x" in text, "dropout is drawn for all pairs"
