"""A text as one vector: JAX's mean of its hidden states, through windows where it is long; no weight stored twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from mlm_onnx import FillMask, QueryError
from mlm_onnx.__main__ import main
from mlm_onnx.bundle.layout import EMBED_GRAPH, FAST_DATA, FAST_GRAPH, BundleError
from mlm_onnx.convert import heads, pipeline
from mlm_onnx.convert.parity import EMBEDDINGS, ParityError, onnx_side, open_session
from mlm_onnx.convert.precision import FP32
from mlm_onnx.convert.quantize import INT8
from mlm_onnx.convert.request import Request
from mlm_onnx.convert.targets import EMBED, FILL_MASK, embed_graph, fill_mask_graph
from support.bundles import ONE_SHAPE, ORIGIN, SENTENCE_MODEL
from support.models import BERT, CONFIGS, SHAPES, randomised, reference
from support.texts import ROOM, long_text

from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.model.encoder import Encoder, Inputs
from jax_mlm.presets import SENTENCE


@pytest.fixture(scope="module")
def fill(sentence_bundles: dict[str, Path]) -> FillMask:
    return FillMask(sentence_bundles["fp32"], threads=1)


def hidden_mean(ids: list[int]) -> np.ndarray:
    """From the encoder itself: one row, nothing padded."""
    row = np.array([ids], np.int32)

    def last(encoder: Encoder, inputs: Inputs) -> Any:
        x = encoder.hidden(inputs)[0]
        return encoder.final_norm(x) if SENTENCE_MODEL.norm_first else x

    hidden = jax.jit(lambda params, *given: Encoder(SENTENCE_MODEL).apply({"params": params}, *given, method=last))
    inputs = Inputs(row, np.ones_like(row), np.arange(len(ids), dtype=np.int32)[None])
    return np.asarray(hidden(randomised(SENTENCE_MODEL), inputs)).mean(0)


@pytest.mark.parametrize("name", ["modernbert-local", "bert", "albert", "albert-two-groups", "rms"])
def test_embeddings_equal_jax(name: str, tmp_path: Path) -> None:
    config, params = CONFIGS[name], randomised(CONFIGS[name])
    file = tmp_path / "fill.onnx"
    fill_mask_graph(config, params).write(file)
    embed_graph(config, params).write_sharing(tmp_path / "embed.onnx", file)
    expected = reference(name).embedding
    ours = onnx_side(open_session(tmp_path / "embed.onnx", EMBEDDINGS.options))
    found = EMBEDDINGS.compare(expected, ours, config.vocab_size, SHAPES)
    assert found.std > 0.1, "too flat a model would hide mistakes"
    assert found.max_difference <= 1e-4
    assert found.least_cosine > 1 - 1e-6


def test_a_text_is_the_mean_of_its_hidden_states(fill: FillMask) -> None:
    for text in ("This", SENTENCE):
        ids = fill.reader.encode(text).ids.tolist()
        np.testing.assert_allclose(fill.embed(text), hidden_mean(ids), atol=1e-4)
    assert fill.embed("This").dtype == np.float32


def test_neighbours_change_nothing(sentence_bundles: dict[str, Path]) -> None:
    texts = ["This model", "a super", "creates", " ".join(long_text(150)), "words the"]
    for name, tolerance in (("fp32", 1e-5), ("int8", 0)):
        fill = FillMask(sentence_bundles[name], threads=1)
        together = fill.embed(texts)
        assert together.shape == (5, SENTENCE_MODEL.width)
        np.testing.assert_allclose(together, [fill.embed(text) for text in texts], atol=tolerance)
        assert fill.embed([]).shape == (0, SENTENCE_MODEL.width)


def test_a_long_text_is_the_mean_over_its_windows(fill: FillMask) -> None:
    words = long_text(2 * ROOM + 1)
    parts = [words[:43], words[43:86], words[86:]]
    expected = sum(len(part) * fill.embed(" ".join(part)) for part in parts) / len(words)
    np.testing.assert_allclose(fill.embed(" ".join(words)), expected, atol=1e-5)
    assert len(list(fill.reader.parts(fill.reader.encode(" ".join(words[:ROOM]))))) == 1


@pytest.mark.parametrize("config", [SENTENCE_MODEL, BERT, CONFIGS["albert"]], ids=["modernbert", "bert", "albert"])
@pytest.mark.parametrize("precision", [FP32, INT8], ids=["fp32", "int8"])
def test_no_weight_is_stored_twice(config: Any, precision: Any, tmp_path: Path) -> None:
    params = randomised(config)
    graph, data = fill_mask_graph(config, params, precision).write(tmp_path / "fill.onnx")
    before = data.read_bytes()
    embed_graph(config, params, precision).write_sharing(tmp_path / "embed.onnx", graph)
    assert data.read_bytes() == before
    assert (tmp_path / "embed.onnx").stat().st_size < 40_000
    model = onnx.load(tmp_path / "embed.onnx", load_external_data=False)
    locations = {
        entry.value for each in model.graph.initializer for entry in each.external_data if entry.key == "location"
    }
    assert locations == {data.name}
    with pytest.raises(ValueError, match="does not store"):
        embed_graph(config, randomised(config, 1), precision).write_sharing(tmp_path / "embed.onnx", graph)


def test_conversion_measures_it(sentence_bundles: dict[str, Path]) -> None:
    manifest = json.loads((sentence_bundles["int8"] / "manifest.json").read_text())
    measured = manifest["parity"]["embeddings"]
    assert measured["fp32"]["max_difference"] <= 1e-4 < measured["int8"]["max_difference"]
    assert 0.9 < measured["int8"]["least_cosine"] < measured["fp32"]["least_cosine"]
    assert manifest["graphs"][EMBED_GRAPH]["outputs"][0]["shape"] == ["batch", SENTENCE_MODEL.width]


def test_an_embedding_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, params: Any, precision: Any) -> Any:
        return embed_graph(replace(model, rope_theta=100.0), params, precision)

    monkeypatch.setattr(heads, "TARGETS", (FILL_MASK, replace(EMBED, build=wrong)))
    tokenizer = train_tokenizer([SENTENCE], "word", 16)
    params, request = randomised(SENTENCE_MODEL), Request("fp32")
    with pytest.raises(ParityError, match="embedding"):
        pipeline.write_bundle(tmp_path / "b", SENTENCE_MODEL, params, tokenizer, request, ORIGIN, ONE_SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_the_graph_is_opened_when_it_is_asked_for(
    sentence_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlm_onnx.answer import session

    opened, real = [], session.ort.InferenceSession

    def record(path: str, *rest: Any, **more: Any) -> Any:
        opened.append(path)
        return real(path, *rest, **more)

    monkeypatch.setattr(session.ort, "InferenceSession", record)
    path = sentence_bundles["fp32"]
    fill = FillMask(path, threads=1)
    fill("This [MASK] a")
    assert opened == [str(path / FAST_GRAPH)]
    fill.embed(["This", "a model"])
    fill.embed("This")
    assert opened == [str(path / FAST_GRAPH), str(path / EMBED_GRAPH)]


def test_what_has_changed_since_loading_is_noticed(sentence_bundles: dict[str, Path], tmp_path: Path) -> None:
    """The bundle may be converted again while its predictor lives: weights of two models are not mixed."""
    copy = shutil.copytree(sentence_bundles["fp32"], tmp_path / "b")
    fill = FillMask(copy, threads=1)
    weights = (copy / FAST_DATA).read_bytes()
    (copy / FAST_DATA).unlink()
    (copy / FAST_DATA).write_bytes(bytes([weights[0] ^ 1]) + weights[1:])
    with pytest.raises(BundleError, match=r"fill_mask\.onnx\.data does not match its SHA-256"):
        fill.embed("This")


def test_bad_texts_are_one_line(fill: FillMask) -> None:
    for text, said in (("", "empty"), ("a" * 1_000_001, "1000001 characters"), ("\ud800", "UTF-8"), (3, "not int")):
        with pytest.raises(QueryError, match=said) as caught:
            fill.embed(text)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_embed_prints_numbers_or_json(sentence_bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(sentence_bundles["int8"])
    assert main(["embed", path, "This model"]) == 0
    numbers = [float(number) for number in capsys.readouterr().out.split()]
    assert main(["embed", path, "This model", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == "This model"
    assert answer["embedding"] == pytest.approx(numbers, rel=1e-4)
    assert len(numbers) == SENTENCE_MODEL.width
    assert main(["embed", path, " "]) == 2
    assert capsys.readouterr().err == "error: the text is empty\n"
