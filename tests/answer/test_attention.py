"""The graph of attention answers what the JAX model attends to, and a bundle that carries it stores no weight twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from mlm_onnx import BundleError, FillMask, QueryError
from mlm_onnx.answer.attention import AttentionReader, carries_attention
from mlm_onnx.answer.reader import Reader
from mlm_onnx.bundle.layout import ATTENTION_GRAPH, FAST_DATA
from mlm_onnx.bundle.read import open_bundle
from mlm_onnx.convert.onnx_file import Graph
from mlm_onnx.convert.parity import ATTENTION_WEIGHTS, ParityError, open_session
from mlm_onnx.convert.precision import FP32, Precision
from mlm_onnx.convert.quantize import INT8
from mlm_onnx.convert.reference import Reference
from mlm_onnx.convert.targets import ATTENTION, attention_graph, fill_mask_graph, write_target
from support.models import CONFIGS, MODERN, randomised

from jax_mlm.config import ModelConfig
from jax_mlm.model.ops.attention import attend, attention_weights
from jax_mlm.model.ops.scores import NEGATIVE, visible

FAMILIES = (
    "modernbert-local",
    "bert",
    "roberta",
    "albert",
    "odd-head",
    "esm",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("distilbert", "albert-two-groups", "rms")),
)


def wide(name: str) -> ModelConfig:
    """Return a model with a table that outweighs the graphs."""
    return replace(CONFIGS[name], vocab_size=4096)


def write(folder: Path, config: ModelConfig, precision: Precision = FP32, asked: ModelConfig | None = None) -> dict:
    (folder / "fast").mkdir()
    params = randomised(config)
    fill_mask_graph(config, params, precision).write(folder / "fast" / "fill_mask.onnx")
    target = replace(ATTENTION, build=lambda asked, *rest: attention_graph(config, *rest))
    reference = Reference(asked or config, params, config.vocab_size)
    return write_target(folder, target, reference, precision, ATTENTION.comparison.shapes(config.max_length))[0]


def test_weights_are_those_that_attend_mixes_by() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 3, 5, 4)).astype(np.float32) for _ in range(3))

    @jax.jit
    def every(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> tuple[jax.Array, ...]:
        return attention_weights(q, k, segments, 2), attend(q, k, v, segments, 2), visible(segments, 2)

    segments = np.array([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]], np.int32)
    weights, mixed, seen = map(np.asarray, every(q, k, v, segments))
    np.testing.assert_allclose(weights @ v, mixed, atol=1e-6)
    assert seen.any()
    assert not seen.all()
    assert (np.where(seen, 0, weights) == 0).all(), f"{NEGATIVE} leaves nothing"


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_equals_jax_and_sums_to_one(name: str, tmp_path: Path) -> None:
    config = wide(name)
    assert write(tmp_path, config)["max_difference"] <= 1e-4
    session = open_session(tmp_path / ATTENTION_GRAPH)
    weights = session.run(None, {"input_ids": np.arange(40).reshape(2, 20)})[0]
    assert weights.shape == (config.layers, 2, config.heads, 20, 20)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    assert weights.std() > 0.02, "flat attention would hide mistakes"
    far = np.abs(np.subtract.outer(np.arange(20), np.arange(20)))
    for layer in range(config.layers):
        if (window := config.window(layer)) is not None:
            assert (weights[layer][..., far > window] == 0).all()


@pytest.mark.parametrize("wrong", [{"local_window": 8}, {"rope_theta": 10_000.0}, {"norm_eps": 0.5}])
def test_another_attention_is_not_written(wrong: dict[str, Any], tmp_path: Path) -> None:
    config = wide("modernbert-local")
    with pytest.raises(ParityError, match="leave out --with-attention"):
        write(tmp_path, replace(config, **wrong), asked=config)


@pytest.mark.parametrize("name", ["modernbert-local", "bert", "albert"])
def test_int8_attention_is_close_and_costs_no_weights(name: str, tmp_path: Path) -> None:
    assert 0 < write(tmp_path, wide(name), INT8)["moved"] <= 0.1
    assert {file.name for file in (tmp_path / "fast").iterdir()} == {
        "fill_mask.onnx",
        "fill_mask.onnx.data",
        "attention.onnx",
    }
    assert (tmp_path / ATTENTION_GRAPH).stat().st_size < (tmp_path / FAST_DATA).stat().st_size / 3


def test_a_weight_that_is_not_stored_is_noticed(tmp_path: Path) -> None:
    fill_mask_graph(MODERN, randomised(MODERN)).write(tmp_path / "fill_mask.onnx")
    other: Graph = attention_graph(MODERN, randomised(MODERN, seed=1))
    with pytest.raises(ValueError, match="does not store token_table"):
        other.write_sharing(tmp_path / "attention.onnx", tmp_path / "fill_mask.onnx")


@pytest.mark.parametrize("longest", [1, 7, 160, 512])
def test_shapes_fit_the_model(longest: int) -> None:
    assert max(length for _, length, _ in ATTENTION_WEIGHTS.shapes(longest)) == min(longest, 160)


def test_a_bundle_answers_what_each_token_attends_to(sentence_bundles: dict[str, Path]) -> None:
    plain = open_bundle(sentence_bundles["int8"])
    assert not carries_attention(plain)
    with pytest.raises(BundleError, match="--with-attention"):
        AttentionReader(plain)
    bundle = open_bundle(sentence_bundles["attention"])
    attention, reader = AttentionReader(bundle), Reader(bundle)
    assert (attention.layers, attention.heads) == (3, 4)
    found = attention(reader.masked("This [MASK] creates"))
    assert found.weights.shape == (3, 4, 3, 3)
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-5)
    assert FillMask(bundle.path)("This [MASK] creates") == FillMask(plain.path)("This [MASK] creates")
    with pytest.raises(QueryError, match="up to 64"):
        attention(reader.encode("word " * 65))


def test_bert_needs_no_types_to_attend(tmp_path: Path) -> None:
    write(tmp_path, wide("bert"))
    assert [port.name for port in open_session(tmp_path / ATTENTION_GRAPH).get_inputs()] == ["input_ids"]
