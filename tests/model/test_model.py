"""The encoder: neighbours and padding cannot change it, positions count, and each switch does something."""

import re
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import shapes_of

from jax_mlm.config import ModelConfig
from jax_mlm.model.encoder import Inputs, unmasked_scale
from jax_mlm.model.heads import make_forward
from jax_mlm.model.ops import attention
from jax_mlm.model.ops.attention import is_dense
from jax_mlm.model.ops.kernels import OURS
from jax_mlm.presets import PRESETS

SMALL = ModelConfig(vocab_size=50, width=32, layers=2, heads=4, ff_width=48, max_length=64)
BERT = replace(
    PRESETS["bert-base"].model, vocab_size=50, width=32, layers=1, heads=4, ff_width=64, max_length=64, dropout=0.0
)
ALBERT = replace(BERT, layers=2, embedding_width=16, layer_groups=1)
ESM = replace(
    PRESETS["esm2-t6-8m"].model, vocab_size=50, width=32, layers=1, heads=4, ff_width=64, max_length=64, mask_id=12
)
LOCAL = replace(SMALL, global_every=2, local_window=4)


def loud(config: ModelConfig, seed: int = 0):
    """Parameters far from zero: with the initial ones, hardly anything would be seen."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        return rng.normal(path[-1].key == "scale", 0.3, leaf.shape).astype(np.float32)

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes_of(config)))


def packed(second: int = 9) -> Inputs:
    """One row: a document of 7 tokens, another of 5, padding."""
    tokens = np.array([[*range(10, 17), *range(20, 25), 0, 0, 0, 0]], np.int32)
    tokens[0, 7:12] += second
    segments = np.array([[1] * 7 + [2] * 5 + [0] * 4], np.int32)
    positions = np.array([[*range(7), *range(5), 0, 0, 0, 0]], np.int32)
    return Inputs(tokens, segments, positions)


AT = np.arange(16, dtype=np.int32)[None]


OWN = pytest.param(SMALL, marks=pytest.mark.slow, id="own")
"""Its layers are among those of the local model."""
KINDS = [pytest.param(BERT, id="bert"), pytest.param(ALBERT, id="albert"), pytest.param(LOCAL, id="local"), OWN]
KINDS += [pytest.param(ESM, id="esm")]


@cache
def answering(config: ModelConfig):
    """Return a function from a row to the gradient of its first document's logits, and the logits of the whole row.

    Its decoder is its own and equals the table: the gradients of the embeddings and the logits are apart.
    """
    forward, params = make_forward(replace(config, tied=False)), loud(config)

    def loss(params, inputs):
        logits = forward(params, inputs, AT)
        return jnp.square(logits[:, :7]).sum(), logits

    return partial(jax.jit(jax.grad(loss, has_aux=True)), {**params, "decoder": params["token_table"]})


@pytest.mark.parametrize("config", KINDS)
def test_neighbours_and_padding_change_no_logit_and_no_gradient(config):
    clean = packed()
    poisoned = Inputs(clean.tokens.copy(), clean.segments, clean.positions.copy())
    poisoned.tokens[0, 7:] = 37
    poisoned.positions[0, 12:] = 3
    (ours, our_logits), (theirs, their_logits) = map(answering(config), (clean, poisoned))
    np.testing.assert_array_equal(np.asarray(our_logits)[:, :7], np.asarray(their_logits)[:, :7])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), ours, theirs)
    untouched = np.setdiff1d(np.arange(50), clean.tokens[0, :7])
    assert not np.asarray(ours["token_table"])[untouched].any()


@pytest.mark.parametrize("config", KINDS)
def test_a_packed_document_answers_as_it_does_alone(config):
    row = packed()
    alone = Inputs(*(np.pad(x[:, 7:12], ((0, 0), (0, 11))) for x in row))
    together, apart = (np.asarray(answering(config)(each)[1]) for each in (row, alone))
    together = together[:, 7:12]
    np.testing.assert_allclose(together, apart[:, :5], rtol=1e-4, atol=1e-4)
    assert together.std() > 1


def test_token_dropout_by_hand():
    """Masks weigh nothing, and the others make up for them within their own document: 0.88 · tokens / unmasked."""
    row = packed()
    row.tokens[0, [1, 2, 8, 13]] = 12  # two of seven, one of five, one in the padding
    scale = np.asarray(unmasked_scale(Inputs(*map(jnp.asarray, row)), 12))
    first, second = 0.88 * 7 / 5, 0.88 * 5 / 4
    np.testing.assert_allclose(scale[0, :12], [first, 0, 0, *[first] * 4, second, 0, *[second] * 3], rtol=1e-6)
    all_masked = Inputs(*(jnp.full((1, 3), value, jnp.int32) for value in (12, 1, 0)))
    assert not np.asarray(unmasked_scale(all_masked, 12)).any(), "nothing is divided by zero"


def test_positions_count():
    params, forward, row = loud(SMALL), jax.jit(make_forward(SMALL)), packed()
    swapped = Inputs(row.tokens[:, [1, 0, *range(2, 16)]], row.segments, row.positions)
    ours, theirs = (np.asarray(forward(params, each, AT)) for each in (row, swapped))
    assert np.abs(ours - theirs)[:, 2:7].max() > 1e-2


def test_local_attention_sees_its_window_and_no_farther():
    """Layer 0 is global; silenced, the two layers after it, ±2 tokens each, reach 4 tokens."""
    config = replace(LOCAL, layers=3, global_every=10, tied=False)
    params = loud(config)
    params["layer_0"]["attention"]["out"]["kernel"] = jnp.zeros((32, 32))
    tokens = np.arange(10, 26, dtype=np.int32)[None]
    inputs = Inputs(tokens, np.ones_like(tokens), np.arange(16, dtype=np.int32)[None])

    def answer(table):
        return make_forward(config)({**params, "token_table": table}, inputs, AT[:, 8:9]).sum()

    touched = np.asarray(jax.jit(jax.grad(answer))(params["token_table"])).any(1)[10:26]
    assert touched.tolist() == [abs(i - 8) <= 4 for i in range(16)]


@pytest.mark.parametrize("config", KINDS)
def test_logits_at_some_positions_and_their_gradients_are_those_of_all(config):
    """The last layer is computed for these alone; one of them is asked about twice."""
    assert_equal_at(config, two_rows(), np.array([[3, 11, 3, 7], [0, 1, 8, 15]], np.int32))


def test_so_they_are_where_whole_rows_go_tile_by_tile(monkeypatch):
    monkeypatch.setattr(attention, "pays_in_tiles", lambda length: True)
    assert_equal_at(SMALL, two_rows(), np.array([[3, 11, 3, 7], [0, 1, 8, 15]], np.int32))


@pytest.mark.parametrize("asked", [90, 110])
def test_so_they_are_in_long_rows_whose_windows_go_block_by_block(asked):
    """Few queries meet all keys; where blocks are less work, many are computed everywhere and then taken."""
    length = 200
    assert is_dense(asked, length, 4, None, OURS) == (asked == 90)
    at = np.arange(length, dtype=np.int32)[None]
    row = Inputs(10 + at % 37, 1 + (at > 120) + (at > 150), at)
    assert_equal_at(LOCAL, row, np.random.default_rng(0).permuted(at, axis=1)[:, :asked])


def two_rows() -> Inputs:
    return Inputs(*(np.concatenate([one, other[:, ::-1]]) for one, other in zip(packed(), packed(3), strict=True)))


def assert_equal_at(config: ModelConfig, rows: Inputs, some: np.ndarray) -> None:
    forward, params = make_forward(config), loud(config)
    every = np.tile(np.arange(rows.tokens.shape[1], dtype=np.int32), (len(some), 1))
    pull = np.random.default_rng(1).normal(size=(*some.shape, 50)).astype(np.float32)

    def answer(params, at, taken):
        logits = jnp.take_along_axis(forward(params, rows, at), taken[..., None], axis=1)
        return (logits * pull).sum(), logits

    both = jax.jit(jax.value_and_grad(answer, has_aux=True))
    given = (some, np.tile(np.arange(some.shape[1]), (len(some), 1))), (every, some)
    ((_, ours), ours_pulled), ((_, theirs), theirs_pulled) = (both(params, *each) for each in given)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs_pulled))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), ours_pulled, theirs_pulled)


def test_the_last_layer_multiplies_what_is_asked_and_no_more():
    """Besides the keys and values of each token: queries, their mixture and the feed-forward layer."""
    at = AT[:, :4]
    text = jax.jit(make_forward(SMALL)).lower(loud(SMALL), packed(), at).as_text()
    products = re.findall(r"dot_general .*: \(tensor<(\d+)x(\d+)xf32>, tensor<\2x(\d+)xf32>\)", text)
    rows = {(inner, columns): [] for _, inner, columns in products}
    for count, inner, columns in products:
        rows[inner, columns].append(int(count))
    assert rows["32", "96"] == [16, 16, 4], "queries, keys and values of the first layer; up of both"
    assert rows["32", "64"] == [16], "keys and values of the last layer"
    assert rows["48", "32"] == [16, 4], "down"
    assert sorted(rows["32", "32"]) == [4, 4, 4, 16], (
        "queries and mixture of the last layer, the head; of the first, its mixture"
    )


def test_shared_layers_have_one_set_of_parameters_and_a_narrow_table():
    params = shapes_of(ALBERT)
    assert [name for name in params if name.startswith("layer_")] == ["layer_0"]
    assert params["token_table"].shape == (50, 16)


@pytest.mark.parametrize("at", [AT, AT[:, :5]], ids=["everywhere", "some"])
def test_dropout_belongs_to_the_row_and_not_to_the_batch(at):
    config = replace(BERT, layers=1, dropout=0.5, attention_dropout=0.5)
    forward, params = jax.jit(make_forward(config)), loud(config)
    row = packed()
    two = Inputs(*(np.concatenate([x, x]) for x in row))
    keys = jax.random.split(jax.random.key(3), 2)
    both = np.asarray(forward(params, two, np.concatenate([at, at]), row_keys=keys))
    np.testing.assert_allclose(both[1:], forward(params, row, at, row_keys=keys[1:]), rtol=1e-4, atol=1e-4)
    assert np.abs(both[0] - both[1]).max() > 0.1
    assert np.abs(both[1] - np.asarray(forward(params, row, at))[0]).max() > 0.1


def test_bfloat16_stays_near_float32():
    params, row = loud(SMALL), packed()
    exact, near = (
        np.asarray(jax.jit(forward)(params, row, AT))
        for forward in (make_forward(SMALL), make_forward(SMALL, jnp.bfloat16))
    )
    assert near.dtype == jnp.float32
    assert np.abs(exact - near)[:, :12].max() < 0.06 * np.abs(exact).max()
