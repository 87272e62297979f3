"""What `convert --for hub` adds: graphs with padding and full logits, and the loaders that must take them unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from mlm_onnx import FillMask
from mlm_onnx.answer.engine import log_softmax, top
from mlm_onnx.bundle.layout import HUB_GRAPH, HUB_QUANTIZED
from mlm_onnx.bundle.read import open_bundle
from mlm_onnx.convert.parity import PADDED_LOGITS, Side, onnx_side, open_session
from mlm_onnx.convert.pipeline import write_bundle
from mlm_onnx.convert.precision import FP32_HUB, Precision
from mlm_onnx.convert.quantize import INT8_HUB
from mlm_onnx.convert.request import Dtype, Request
from mlm_onnx.convert.targets import TARGETS, masked_lm_graph
from support.bundles import ORIGIN
from support.models import CONFIGS, MODERN, USUAL, randomised, reference
from support.runs import run_json
from tokenizers import Tokenizer

from jax_mlm.data.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
SHAPES = ((1, 1, 1), (2, 7, 1), (1, 18, 18), (3, 18, 5), (5, 33, 2), (2, 48, 30))
WEB_OPERATORS = {
    *("Abs", "Add", "Cast", "Concat", "Cos", "CumSum", "Div", "DynamicQuantizeLinear", "Equal", "Gather", "Gelu"),
    *("Gemm", "Greater", "LayerNormalization", "MatMul", "MatMulInteger", "Max", "Mul", "Or", "Range", "ReduceSum"),
    *("Relu", "Reshape", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Transpose"),
    *("Unsqueeze", "Where"),
}
"""Each has a kernel in onnxruntime's CPU provider for opset 20, which is what onnxruntime-web compiles to WASM."""


def build(path: Path, config: Any, precision: Precision = FP32_HUB, params: Any = None) -> Side:
    params = randomised(config) if params is None else params
    masked_lm_graph(config, params, precision).write_single(path / "model.onnx")
    return onnx_side(open_session(path / "model.onnx"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in CONFIGS]
)
def test_padded_logits_equal_jax(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    types = config.token_types if config.family in ("bert", "albert") else 0
    parity = PADDED_LOGITS.compare(
        reference(name).padded_logits, build(tmp_path, config), config.vocab_size, SHAPES, types
    )
    assert parity.logit_std >= 1, "too flat a model would hide mistakes"
    assert parity.max_difference <= 1e-4
    assert parity.top1_agreement == 1.0


@pytest.mark.parametrize("name", ["modernbert-local", "bert", "albert", "roberta", "esm"])
def test_padding_may_stand_anywhere(name: str, tmp_path: Path) -> None:
    config, rng = CONFIGS[name], np.random.default_rng(2)
    ids = rng.integers(0, 96, (4, 30))
    mask = (rng.random((4, 30)) < 0.6).astype(np.int64)
    mask[1, :12] = 0  # on the left: a window full of padding
    mask[2] = 0  # nothing at all
    query = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    got = build(tmp_path, config)(**query)
    assert np.isfinite(got).all()
    seen = mask.astype(bool)
    np.testing.assert_allclose(got[seen], reference(name).padded_logits(**query)[seen], atol=1e-4)


@pytest.mark.parametrize("name", ["roberta", "esm", "modernbert-local"])
def test_padding_on_either_side_changes_no_answer(name: str, tmp_path: Path) -> None:
    """RoBERTa counts positions over ids that are not padding, and rotary ones are relative; BERT's are absolute."""
    ours, ids = build(tmp_path, CONFIGS[name]), np.arange(4, 20)[None]
    alone = ours(input_ids=ids, attention_mask=np.ones_like(ids))
    for before, after in ((6, 0), (0, 6), (3, 2)):
        sides = ((0, 0), (before, after))
        padded = ours(input_ids=np.pad(ids, sides, constant_values=1), attention_mask=np.pad(np.ones_like(ids), sides))
        assert np.abs(padded[:, before : before + 16] - alone).max() <= 1e-4


def test_a_mask_that_is_ignored_would_be_noticed(tmp_path: Path) -> None:
    ours = build(tmp_path, CONFIGS["modernbert-local"])

    def ignoring(attention_mask: np.ndarray, **query: np.ndarray) -> np.ndarray:
        return ours(attention_mask=np.ones_like(attention_mask), **query)

    parity = PADDED_LOGITS.compare(reference("modernbert-local").padded_logits, ignoring, 96, SHAPES)
    assert parity.max_difference > 1e-2


@pytest.mark.parametrize("precision", [FP32_HUB, INT8_HUB], ids=["fp32", "int8"])
@pytest.mark.parametrize(
    ("name", "typed"), [("modernbert-local", False), ("bert", True), ("roberta", False), ("esm", False)]
)
def test_ports_and_operators(name: str, typed: bool, precision: Precision, tmp_path: Path) -> None:
    build(tmp_path, CONFIGS[name], precision)
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    rows = ["batch_size", "sequence_length"]
    names = ["input_ids", "attention_mask", "token_type_ids"][: 3 if typed else 2]
    assert [(port.name, port.type, port.shape) for port in session.get_inputs()] == [
        (port, "tensor(int64)", rows) for port in names
    ]
    assert [(port.name, port.type, port.shape) for port in session.get_outputs()] == [
        ("logits", "tensor(float)", [*rows, 96])
    ]
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert {node.domain for node in graph.node} == {""}
    assert {node.op_type for node in graph.node} <= WEB_OPERATORS


def test_one_file_holds_every_weight_once(tmp_path: Path) -> None:
    config = replace(MODERN, width=256, vocab_size=4096, ff_width=384)
    params = randomised(config)
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    build(tmp_path, config, FP32_HUB, params)
    assert needed < (tmp_path / "model.onnx").stat().st_size <= needed + 40_000
    build(tmp_path, config, INT8_HUB, params)
    assert (tmp_path / "model.onnx").stat().st_size <= 0.27 * needed
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_weights_beyond_protobufs_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlm_onnx.convert.onnx_file.LARGEST_SINGLE", 1000)
    with pytest.raises(ValueError, match="do not fit into one ONNX file"):
        build(tmp_path, MODERN)


@pytest.mark.parametrize("name", ["modernbert-local", "every-bias", "untied", "bert", "roberta", "albert", "esm"])
def test_int8_logits_stay_close(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    parity = PADDED_LOGITS.compare(
        reference(name).padded_logits, build(tmp_path, config, INT8_HUB), config.vocab_size, SHAPES
    )
    assert 0 < parity.rms_difference <= 0.08 * parity.logit_std
    assert parity.top1_agreement >= 0.8


# ---- the loaders --------------------------------------------------------------------------------


TEXTS = ["the model [MASK] a bundle", "what a reader of this kind would [MASK] from a model"]


@pytest.fixture(scope="module", params=["modernbert-local", "bert"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with both graphs for the hub."""
    path = tmp_path_factory.mktemp("hub") / request.param
    kind = "wordpiece" if request.param == "bert" else "bpe"
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), (400, 5))
    tokenizer = train_tokenizer([*TEXTS, *("".join(word) for word in letters)], kind, 320 if kind == "bpe" else 256)
    config = replace(CONFIGS[request.param], vocab_size=tokenizer.get_vocab_size())
    write_bundle(path, config, randomised(config, 3), tokenizer, Request(layout="hub"), ORIGIN)
    return path


def test_the_manifest_lists_the_hub_files(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert {HUB_GRAPH, HUB_QUANTIZED} <= set(manifest["files"])
    assert manifest["graphs"][HUB_GRAPH]["outputs"][0]["shape"] == [
        "batch_size",
        "sequence_length",
        manifest["vocab_size"],
    ]
    assert manifest["parity"]["hub"]["fp32"]["max_difference"] <= 1e-4
    assert manifest["parity"]["hub"]["int8"]["top1_agreement"] >= 0.8
    assert FillMask(bundle)(TEXTS)[0]["masks"], "the predictor reads the same bundle"


def test_float32_keeps_everything_in_float32() -> None:
    def hub_files(dtype: Dtype) -> list[str]:
        written = [target.file for target in TARGETS if target.dtypes(Request(dtype, "hub"))]
        return [file for file in written if file.startswith("onnx/")]

    assert hub_files("fp32") == [HUB_GRAPH]
    assert hub_files("int8") == [HUB_GRAPH, HUB_QUANTIZED]


def ours(bundle: Path, name: str) -> tuple[list[list[tuple[int, float]]], dict[str, np.ndarray], np.ndarray]:
    """(top five of each text, what the graph was given, its logits), with onnxruntime and tokenizers alone."""
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    pad = open_bundle(bundle).special.pad_id
    encoded = [tokenizer.encode(text).ids for text in TEXTS]
    length = max(map(len, encoded))
    given = {
        "input_ids": np.array([ids + [pad] * (length - len(ids)) for ids in encoded]),
        "attention_mask": np.array([[1] * len(ids) + [0] * (length - len(ids)) for ids in encoded]),
    }
    session = ort.InferenceSession(str(bundle / name))
    if len(session.get_inputs()) == 3:
        given["token_type_ids"] = np.zeros_like(given["input_ids"])
    logits = session.run(None, given)[0]
    at = [ids.index(tokenizer.token_to_id("[MASK]")) for ids in encoded]
    rows = np.exp(log_softmax(logits[np.arange(len(at)), at]))
    return [[(int(id), float(row[id])) for id in top(row, 5)] for row in rows], given, logits


def check_answers(found: Any, bundle: Path) -> None:
    """Float32: the same five tokens, within 1e-3, as from our own graph; int8: the same first token, within 0.02."""
    expected, _, _ = ours(bundle, HUB_GRAPH)
    for theirs, mine in zip(found["fp32"], expected, strict=True):
        assert [id for id, _ in theirs] == [id for id, _ in mine]
        np.testing.assert_allclose([p for _, p in theirs], [p for _, p in mine], atol=1e-3)
    for theirs, mine in zip(found["q8"], ours(bundle, HUB_QUANTIZED)[0], strict=True):
        assert theirs[0][0] == mine[0][0]
        assert abs(theirs[0][1] - mine[0][1]) <= 0.02
    fill = FillMask(bundle)
    for theirs, answer, mine in zip(found["q8"], fill(TEXTS), expected, strict=True):
        near = mine[0][1] - mine[1][1] < 0.05  # rounding may swap those two
        if not near and mine[0][0] not in fill.bundle.special.excluded:  # theirs may answer with a special token
            assert theirs[0][0] == answer["masks"][0]["candidates"][0]["id"] == mine[0][0]


def test_optimum_loads_it_unchanged(optimum: str, bundle: Path) -> None:
    found = run_json([optimum, str(HERE / "hub_loader.py"), str(bundle), json.dumps(TEXTS)])
    check_answers(found["answers"], bundle)


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
def test_transformers_js_and_wasm_load_it_unchanged(node_modules: Path, bundle: Path) -> None:
    feeds = {name: array.tolist() for name, array in ours(bundle, HUB_GRAPH)[1].items()}
    script = str(HERE / "hub_loader.mjs")
    found = run_json(["node", script, str(node_modules), str(bundle), json.dumps(TEXTS), json.dumps(feeds)])
    check_answers(found["answers"], bundle)
    for name, tolerance in (("model", 1e-3), ("model_quantized", 0.5)):
        expected = ours(bundle, f"onnx/{name}.onnx")[2]
        real = np.array(feeds["attention_mask"], bool)
        logits = np.array(found["wasm"][name]).reshape(expected.shape)
        np.testing.assert_allclose(logits[real], expected[real], atol=tolerance)


IN_A_BROWSER = """async (texts) => {
  const { pipeline, env } = await import('/modules/@huggingface/transformers/dist/transformers.min.js');
  Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: '/' });
  Object.assign(env.backends.onnx.wasm, { wasmPaths: '/modules/onnxruntime-web/dist/', numThreads: 1 });
  const answers = {};
  for (const dtype of ['fp32', 'q8']) {
    const fill = await pipeline('fill-mask', 'bundle', { dtype, device: 'wasm' });
    const found = await fill(texts, { top_k: 5 });
    answers[dtype] = found.map((candidates) => candidates.map(({ token, score }) => [token, score]));
  }
  return answers;
}"""


def test_transformers_js_loads_it_unchanged_in_chromium(
    node_modules: Path, bundle: Path, chromium: Browser, serve: Callable[[Path], str], tmp_path: Path
) -> None:
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "modules").symlink_to(node_modules)
    (tmp_path / "index.html").write_text("<!doctype html><title>empty</title>")
    address = serve(tmp_path)
    page = chromium.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    check_answers(page.evaluate(IN_A_BROWSER, TEXTS), bundle)
    page.close()
    assert {f"{address}/bundle/{name}" for name in (HUB_GRAPH, HUB_QUANTIZED)} <= set(asked)
    assert all(url.startswith((address, "blob:", "data:")) for url in asked), "everything comes from here"
