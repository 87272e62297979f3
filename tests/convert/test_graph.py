"""The ONNX graph computes what the JAX model computes, for every switch, and a wrong one would be noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime as ort
import pytest
from mlm_onnx.convert.parity import LOGITS
from mlm_onnx.convert.precision import FP32, Precision
from mlm_onnx.convert.quantize import INT8, block_size, quantize_blocks, quantize_columns
from mlm_onnx.convert.targets import fill_mask_graph
from support.bundles import fast_side
from support.models import BERT, CONFIGS, MODERN, SHAPES, USUAL, randomised, reference

from jax_mlm.config import ModelConfig
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import make_forward


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Callable[..., np.ndarray]]:
    """Builds the graph of a config and returns its function."""

    def build(config: ModelConfig, params: Any, precision: Precision = FP32) -> Callable[..., np.ndarray]:
        fill_mask_graph(config, params, precision).write(tmp_path / "g.onnx")
        return fast_side(tmp_path / "g.onnx")

    return build


@pytest.mark.parametrize("name", ["modernbert-local", "albert"])
def test_the_reference_answers_as_training_computes(name: str) -> None:
    config, rng = CONFIGS[name], np.random.default_rng(0)
    ids, at = rng.integers(0, 96, (5, 48)), rng.integers(0, 48, (5, 4))
    inputs = Inputs(ids.astype(np.int32), np.ones_like(ids), np.broadcast_to(np.arange(48), ids.shape))
    theirs = jax.jit(make_forward(config))(randomised(config), inputs, at)
    np.testing.assert_allclose(reference(name).logits(ids, at), theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in CONFIGS]
)
def test_logits_equal_jax(name: str, run: Any) -> None:
    config = CONFIGS[name]
    parity = LOGITS.compare(reference(name).logits, run(config, randomised(config)), config.vocab_size, SHAPES)
    assert parity.logit_std >= 1, "too flat a model would hide mistakes"
    assert parity.max_difference <= 1e-4
    assert parity.top1_agreement == 1.0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("bert", {"activation": "gelu_tanh"}),
        ("albert", {"activation": "gelu"}),
        ("rms", {"norm_eps": 1e-5}),
        ("roberta", {"position_offset": 1}),
        ("modernbert-local", {"local_window": 8}),
        ("modernbert-local", {"rope_theta": 10_000.0}),
        ("modernbert-local", {"rope_theta_local": 160_000.0}),
        ("modernbert-local", {"global_every": 2}),
        ("bert", {"heads": 8}),
        ("rms", {"norm": "layer"}),
        ("esm", {"token_dropout": False}),
        ("esm", {"mask_id": 6}),
    ],
)
def test_parity_notices_a_wrong_switch(name: str, wrong: dict[str, Any], run: Any) -> None:
    config = CONFIGS[name]
    ours = run(replace(config, **wrong), randomised(config))
    assert LOGITS.compare(reference(name).logits, ours, config.vocab_size, SHAPES[2:6]).max_difference > 1e-3


@pytest.mark.parametrize("name", ["modernbert-local", "bert"])
def test_rows_do_not_see_each_other(name: str, run: Any) -> None:
    config = CONFIGS[name]
    ours = run(config, randomised(config))
    rng = np.random.default_rng(1)
    ids, at = rng.integers(0, 96, (6, 20)), rng.integers(0, 20, (6, 3))
    together = ours(ids, at)
    for row in range(6):
        np.testing.assert_allclose(together[row : row + 1], ours(ids[row : row + 1], at[row : row + 1]), atol=1e-5)


def test_positions_in_any_order_and_repeated(run: Any) -> None:
    ours = run(MODERN, randomised(MODERN))
    ids = np.arange(10)[None]
    everywhere = ours(ids, np.arange(10)[None])
    asked = ours(ids, np.array([[7, 0, 7, 3]]))
    np.testing.assert_allclose(asked, everywhere[:, [7, 0, 7, 3]], atol=1e-5)


def test_the_length_limit_is_usable_and_inputs_are_named(tmp_path: Path) -> None:
    fill_mask_graph(BERT, randomised(BERT)).write(tmp_path / "g.onnx")
    session = ort.InferenceSession(str(tmp_path / "g.onnx"))
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", ["batch", "sequence"]),
        ("positions", "tensor(int64)", ["batch", "masks"]),
    ]
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("logits", "tensor(float)", ["batch", "masks", 96])
    ]
    logits = session.run(None, {"input_ids": np.zeros((1, 48), np.int64), "positions": np.array([[47]])})[0]
    assert logits.shape == (1, 1, 96)


def test_tied_and_shared_weights_are_stored_once(tmp_path: Path) -> None:
    def size(config: ModelConfig) -> int:
        params = randomised(config)
        fill_mask_graph(config, params).write(tmp_path / "g.onnx")
        stored = (tmp_path / "g.onnx.data").stat().st_size
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        assert stored <= needed + 64 * 100, "a weight is stored twice"
        return stored

    wide = replace(MODERN, vocab_size=4096)
    assert size(replace(wide, tied=False)) - size(wide) == 4096 * 32 * 4
    shared = replace(CONFIGS["albert"], layers=2)
    assert size(replace(shared, layers=12)) == size(shared)


# ---- int8 -------------------------------------------------------------------------------------------


def test_quantised_values_by_hand() -> None:
    values, scale = quantize_columns(np.array([[1.27, 0.0, -2.54], [-0.63, 0.0, 1.0]], np.float32))
    assert values.tolist() == [[127, 0, -127], [-63, 0, 50]]
    np.testing.assert_allclose(scale, [0.01, 1 / 127, 0.02], rtol=1e-6)
    table = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    stored, scale = quantize_blocks(table, 16)
    assert (stored.shape, stored.dtype, scale.shape) == ((5, 4, 16), np.uint8, (5, 4))
    back = ((stored.astype(np.float32) - 128) * scale[..., None]).reshape(5, 64)
    assert (np.abs(back - table).reshape(5, 4, 16) <= scale[..., None] * 0.501).all()
    assert [block_size(width) for width in (768, 320, 48, 24, 7)] == [128, 64, 16, None, None]


@pytest.mark.parametrize(
    "name",
    ["modernbert-local", "every-bias", "untied", "bert", "roberta", "distilbert", "albert", "albert-two-groups", "esm"],
)
def test_int8_logits_stay_close(name: str, run: Any) -> None:
    config = CONFIGS[name]
    parity = LOGITS.compare(reference(name).logits, run(config, randomised(config), INT8), config.vocab_size, SHAPES)
    assert 0 < parity.rms_difference <= 0.08 * parity.logit_std
    assert parity.top1_agreement >= 0.8


def test_int8_weights_are_stored_once_and_small(tmp_path: Path) -> None:
    config = replace(MODERN, width=256, vocab_size=4096, ff_width=384)
    params = randomised(config)
    fill_mask_graph(config, params, INT8).write(tmp_path / "g.onnx")
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert (tmp_path / "g.onnx.data").stat().st_size <= 0.27 * needed
