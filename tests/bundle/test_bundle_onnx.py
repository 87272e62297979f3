"""The check of ONNX files passes every graph that is ours, and reads the wire format as protobuf does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mlm_onnx.bundle.graph_check import OPERATORS, check_onnx
from mlm_onnx.bundle.read import open_bundle
from mlm_onnx.bundle.wire import OnnxError
from mlm_onnx.convert import Request, write_bundle
from mlm_onnx.convert.heads import fast_graph
from mlm_onnx.convert.precision import FP32, FP32_HUB
from mlm_onnx.convert.quantize import INT8, INT8_HUB, INT8_WEB
from mlm_onnx.convert.targets import attention_graph, embed_graph, fill_mask_graph, masked_lm_graph
from onnx import TensorProto, helper, numpy_helper
from support.bundles import ONE_SHAPE, ORIGIN, SENTENCE_MODEL
from support.models import CONFIGS, MODELS, randomised
from support.tasks import TASKS as HEADS
from support.tasks import drawn

from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.presets import SENTENCE


def sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir()}


@pytest.mark.parametrize("precision", [FP32, INT8], ids=lambda precision: precision.name)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_graph_of_ours_passes(name: str, precision: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    fill_mask_graph(CONFIGS[name], randomised(CONFIGS[name]), precision).write(file)
    check_onnx(file, sizes(tmp_path))
    with pytest.raises(OnnxError, match="lies outside the bundle"):
        check_onnx(file, {"model.onnx": 1 << 30})
    with pytest.raises(OnnxError, match="but claims bytes"):
        check_onnx(file, dict.fromkeys(sizes(tmp_path), 100))


def test_the_hub_layout_passes(tmp_path: Path) -> None:
    model = SENTENCE_MODEL
    tokenizer = train_tokenizer([SENTENCE], "word", 16)
    write_bundle(tmp_path / "b", model, randomised(model), tokenizer, Request(layout="hub"), ORIGIN, ONE_SHAPE)
    listed = open_bundle(tmp_path / "b").manifest["files"]
    assert any(name.startswith("onnx/") for name in listed)


def test_operators_only_compute() -> None:
    """None of these can run other graphs, code or files, or make a large tensor out of a small number."""
    for kinds in OPERATORS.values():
        assert not kinds & {
            "If", "Loop", "Scan", "SequenceMap", "ConstantOfShape", "Expand", "Tile", "Resize", "Pad", "OneHot",
            "RandomNormal", "RandomUniform", "StringNormalizer", "ImageDecoder", "BeamSearch", "EPContext", "Conv",
        }  # fmt: skip


def test_no_operator_is_allowed_that_our_graphs_do_not_use() -> None:
    kinds = (
        (fill_mask_graph, (FP32, INT8, INT8_WEB)),
        (embed_graph, (FP32, INT8)),
        (attention_graph, (FP32, INT8)),
        (masked_lm_graph, (FP32_HUB, INT8_HUB)),
    )
    used: dict[str, set[str]] = {"": set(), "com.microsoft": set()}
    for name, config in CONFIGS.items():
        params = randomised(CONFIGS[name])
        for graph, precisions in kinds:
            for precision in precisions:
                for node in graph(config, params, precision).model().graph.node:
                    used[node.domain].add(node.op_type)
    for family in MODELS:
        model, task = MODELS[family], HEADS["classify"]
        for node in fast_graph(task, model, drawn(model, task)).model().graph.node:
            used[node.domain].add(node.op_type)
    assert {domain: set(OPERATORS[domain]) for domain in used} == used


def model_with(*tensors: TensorProto, change: Callable[[onnx.ModelProto], object] = lambda model: None) -> bytes:
    node = helper.make_node("Abs", ["x"], ["y"])
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", ports[:1], ports[1:], list(tensors)))
    change(model)
    return model.SerializeToString()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(-1, np.int64),
        np.array([1 << 24, -(1 << 24), (1 << 63) - 1, -(1 << 63)], np.int64),
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
        np.arange(5, dtype=np.uint8),
        np.arange(5, dtype=np.float16),
    ],
)
def test_tensors_in_the_file_itself(array: np.ndarray, tmp_path: Path) -> None:
    file, tensor = tmp_path / "m.onnx", numpy_helper.from_array(array, "t")
    file.write_bytes(model_with(tensor))
    check_onnx(file, {})
    if array.size:
        tensor.raw_data = tensor.raw_data[:-1]
        file.write_bytes(model_with(tensor))
        with pytest.raises(OnnxError, match="bytes where its dimensions need"):
            check_onnx(file, {})
    if array.dtype in (np.float32, np.int64) and array.size:
        typed = helper.make_tensor("t", tensor.data_type, array.shape, array.ravel().tolist())
        file.write_bytes(model_with(typed))
        check_onnx(file, {})
        typed.dims.append(1000)
        file.write_bytes(model_with(typed))
        with pytest.raises(OnnxError, match="fewer values than its dimensions need"):
            check_onnx(file, {})


@pytest.mark.parametrize("value", [(1 << 24) + 1, -(1 << 24) - 1, 1 << 40, -(1 << 62)])
def test_numbers_that_could_become_dimensions_are_bounded(value: int, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    typed = helper.make_tensor("t", TensorProto.INT64, [1], [value])
    for tensor in (typed, numpy_helper.from_array(np.array([value], np.int64), "t")):
        file.write_bytes(model_with(tensor))
        with pytest.raises(OnnxError, match="too large for a dimension"):
            check_onnx(file, {})
    constant = helper.make_node("Constant", [], ["c"], value_ints=[1, value])
    file.write_bytes(model_with(change=lambda m: m.graph.node.append(constant)))
    with pytest.raises(OnnxError, match="too large for a dimension"):
        check_onnx(file, {})
    inside = helper.make_node("Constant", [], ["c"], value=typed)
    file.write_bytes(model_with(change=lambda m: m.graph.node.append(inside)))
    with pytest.raises(OnnxError, match="too large for a dimension"):
        check_onnx(file, {})


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 20, b"PK\x03\x04" * 9, b"\x08" * 5, b"\x3a\x00"])
def test_what_is_not_a_model(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    if content == b"\x3a\x00":  # an empty graph: onnxruntime's to refuse
        check_onnx(tmp_path / "m.onnx", {})
        return
    with pytest.raises(OnnxError):
        check_onnx(tmp_path / "m.onnx", {})


def test_graphs_nested_deep_are_refused_at_once(tmp_path: Path) -> None:
    """Refused where nesting begins: the depth of the walk does not depend on the file."""

    def wrap(key: int, content: bytes) -> bytes:
        length, size = len(content), b""
        while length > 127:
            size += bytes([length & 127 | 128])
            length >>= 7
        return bytes([key]) + size + bytes([length]) + content

    node = wrap(0x22, b"Abs")  # op_type
    for _ in range(3000):
        node = wrap(0x22, b"Abs") + wrap(0x2A, wrap(0x32, wrap(0x0A, node)))  # attribute { g { node } }
    (tmp_path / "m.onnx").write_bytes(wrap(0x3A, wrap(0x0A, node)))
    with pytest.raises(OnnxError, match="attribute has field 6"):
        check_onnx(tmp_path / "m.onnx", {})
