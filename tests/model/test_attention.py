"""Every way to compute attention gives what the scores of all pairs give."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.attention import dense, drawn, mixed

from jax_mlm.model.ops import tiles
from jax_mlm.model.ops.attention import Drop, attend
from jax_mlm.model.ops.scores import block_attention
from jax_mlm.model.ops.tiles import SHORTEST, TILE, tiled_attention


def by_hand(q, k, v, g, segments, window=None):
    """Return the mixture and its gradients by the scores of all pairs, in numpy and 64 bits."""
    q, k, v, g, segments = (np.asarray(x).astype(np.float64) for x in (q, k, v, g, segments))
    at = np.arange(q.shape[2])
    seen = (segments[:, None, :, None] == segments[:, None, None]) & (
        np.abs(at[:, None] - at) <= (at.size if window is None else window)
    )
    scores = np.where(seen, q @ k.swapaxes(-1, -2), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out, given = weights @ v, g @ v.swapaxes(-1, -2)
    change = weights * (given - (given * weights).sum(-1, keepdims=True))
    return out, change @ k, change.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ g


@pytest.mark.parametrize("window", [None, 3])
def test_the_scores_of_all_pairs_are_those_by_hand(window):
    q, k, v, g, segments = drawn(3, 2, 33, 8)
    ours = jax.jit(partial(mixed, dense(segments, window)))(q, k, v, g)
    for a, b in zip(ours, by_hand(q, k, v, g, segments, window), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "window"),
    [(200, 32), (192, 32), (97, 0), (97, 1), (50, 5), (200, 70), (32, 32), (7, 300), (1, 0)],
)
def test_blocks_of_a_window_equal_the_scores_of_all_pairs(length, window):
    q, k, v, g, segments = drawn(3, 2, length, 8, seed=length + window)
    ours = jax.jit(partial(mixed, partial(block_attention, segments=segments, window=window)))(q, k, v, g)
    for a, b in zip(ours, by_hand(q, k, v, g, segments, window), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_blocks_in_16_bits_round_as_the_scores_of_all_pairs_do():
    q, k, v, g, segments = drawn(2, 2, 200, 8, jnp.bfloat16)
    ways = partial(block_attention, segments=segments, window=20), dense(segments, 20)
    errors = errors_of(ways, by_hand(q, k, v, g, segments, 20), q, k, v, g)
    assert all(ours <= 3 * theirs for ours, theirs in zip(*errors, strict=True)), errors


def errors_of(ways, exact, *given):
    """Return the largest error of each way's mixture, and of each of its gradients."""
    found = jax.jit(lambda *given: [mixed(way, *given) for way in ways])(*given)
    return [[np.abs(np.asarray(a) - b).max() for a, b in zip(each, exact, strict=True)] for each in found]


@pytest.fixture
def in_tiles(monkeypatch):
    """Return the mixture by `tiled_attention` and its gradients, in tiles of 32 float32 weights or 64 of bfloat16."""
    monkeypatch.setattr(tiles, "TILE", 128)
    return _mixed_in_tiles


@jax.jit
def _mixed_in_tiles(q, k, v, g, segments):
    return mixed(partial(tiled_attention, segments=segments), q, k, v, g)


@pytest.mark.parametrize("length", [1, 32, 97])
def test_tiles_equal_the_scores_of_all_pairs(in_tiles, length):
    q, k, v, g, segments = drawn(3, 2, length, 8, seed=length)
    for a, b in zip(in_tiles(q, k, v, g, segments), by_hand(q, k, v, g, segments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max() + 1e-6)


def test_in_float32_no_device_holds_the_scores_of_all_pairs() -> None:
    """Kernels of GPUs are for 16 bits, and validation is in float32."""
    heads, segments = jax.ShapeDtypeStruct((1, 1, 2048, 8), jnp.float32), jax.ShapeDtypeStruct((1, 2048), jnp.int32)
    traced = jax.jit(tiled_attention).trace(heads, heads, heads, segments)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "2048x2048" not in text
    assert "1024x1024" in text


@pytest.mark.usefixtures("in_tiles")
def test_tiles_in_16_bits_round_as_the_scores_of_all_pairs_do():
    q, k, v, g, segments = drawn(2, 2, 200, 8, jnp.bfloat16)
    ways = partial(tiled_attention, segments=segments), dense(segments, None)
    errors = errors_of(ways, by_hand(q, k, v, g, segments), q, k, v, g)
    assert all(ours <= 3 * theirs for ours, theirs in zip(*errors, strict=True)), errors


@pytest.mark.parametrize(
    "documents",
    [[7] * 128, [3] * 40 + [1] * 60 + [2] * 28, [5, 0] * 64],
    ids=["one", "in any order", "padding between"],
)
def test_tiles_that_no_document_joins_are_left_out_and_no_others(in_tiles, documents):
    q, k, v, g, _ = drawn(1, 2, 128, 8)
    segments = jnp.asarray([documents], jnp.int32)
    for a, b in zip(in_tiles(q, k, v, g, segments), by_hand(q, k, v, g, segments), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_tiles_meet_where_a_row_has_a_document_in_both():
    first, second = [1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 2, 2, 3, 3, 4, 5]
    batches = jnp.asarray([[first, first], [second, second], [first, second]], jnp.int32)
    meet = jax.jit(jax.vmap(lambda rows: tiles._may_meet(tiles._tiles(rows[:, None, :, None], 2, -1))))(batches)
    rows = [" ".join("".join(map(str, row)) for row in each) for each in meet.astype(int).tolist()]
    assert rows == ["1100 1110 0110 0001", "1000 0100 0010 0001", "1100 1110 0110 0001"]


def test_another_documents_tokens_change_nothing_however_large(in_tiles):
    q, k, v, g, _ = drawn(1, 2, 128, 8)
    segments = jnp.asarray([[1] * 40 + [2] * 88], jnp.int32)
    larger = (np.where(np.arange(128)[:, None] < 40, np.float32(1e4), x) for x in (k, v))
    for a, b in zip(in_tiles(q, k, v, g, segments), in_tiles(q, *larger, g, segments), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[:, :, 40:], np.asarray(b)[:, :, 40:])


@pytest.mark.parametrize(("dtype", "length"), [("float32", SHORTEST), ("bfloat16", SHORTEST + 1)])
def test_the_largest_array_of_attention_to_a_long_row_is_a_tile_of_scores(dtype, length):
    q, k, v, g, segments = drawn(1, 2, length, 8, jnp.dtype(dtype))
    text = jax.jit(partial(mixed, lambda *x: attend(*x, segments, None))).lower(q, k, v, g).as_text()
    shapes = re.findall(r"tensor<([\dx]+)x[a-z]", text)
    tile = TILE // jnp.dtype(dtype).itemsize
    assert max(math.prod(map(int, shape.split("x"))) for shape in shapes) == 2 * tile * tile < length * length / 4


@pytest.mark.parametrize(
    ("length", "window", "in_blocks"), [(192, 32, True), (191, 32, False), (512, None, False), (SHORTEST, None, True)]
)
def test_a_long_row_makes_no_scores_of_all_pairs(length, window, in_blocks):
    q, k, v, _, segments = drawn(2, 2, length, 8)
    text = jax.jit(jax.grad(lambda q: attend(q, k, v, segments, window).sum())).lower(q).as_text()
    assert (f"x{length}x{length}x" not in text) == in_blocks
    drop = Drop(0.1, jax.random.split(jax.random.key(0), 2), 0)
    text = jax.jit(lambda q: attend(q, k, v, segments, window, drop)).lower(q).as_text()
    assert f"x{length}x{length}x" in text, "dropout is drawn for all pairs"
