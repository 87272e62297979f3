"""Run directory → bundle. The only file here that reads a checkpoint.

A bundle is written only after its graph has been compared with the JAX model, on the weights as trained.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import ModelConfig
from jax_mlm.data.tokenizer import Vocabulary, load_tokenizer, vocabulary_of
from jax_mlm.hf.config import hf_config
from jax_mlm.hf.tokenizer import hf_tokenizer_config
from jax_mlm.presets import SENTENCE
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import TOKENIZER_FILE, read_run, read_run_file
from mlm_onnx.bundle import read as bundle
from mlm_onnx.bundle.layout import (
    ATTENTION_GRAPH,
    CONFIG,
    EMBED_GRAPH,
    FAST_GRAPH,
    LARGEST,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEB_GRAPH,
    BundleError,
    Limits,
)
from mlm_onnx.bundle.write import check_target, new_bundle, seal
from mlm_onnx.convert import saturation
from mlm_onnx.convert.attention import jax_attention, write_attention
from mlm_onnx.convert.calibrate import calibrate, queries
from mlm_onnx.convert.examples import examples_for
from mlm_onnx.convert.graphs import embed_graph, fill_mask_graph
from mlm_onnx.convert.hub import hub_files, write_hub
from mlm_onnx.convert.parity import (
    check,
    compare,
    compare_embeddings,
    jax_sides,
    onnx_embed,
    onnx_forward,
    parity_shapes,
)
from mlm_onnx.convert.ports import ports
from mlm_onnx.convert.precision import FP32, Precision
from mlm_onnx.convert.quantize import INT8, INT8_WEB, adjusted
from mlm_onnx.convert.space import check_space, write_space
from mlm_onnx.convert.web import find_runtime, write_page

PRECISIONS = {"int8": INT8, "fp32": FP32}
PACKAGES = ("mlm-onnx", "jax-mlm", "jax", "onnx", "onnxruntime", "tokenizers", "numpy")
Layout = Literal["predictor", "hub", "web", "space"]


def convert(
    run: Path,
    out: Path,
    dtype: Literal["int8", "fp32"] = "int8",
    layout: Layout = "predictor",
    calibration: Path | None = None,
    reduce_range: bool = False,
    web_runtime: Path | None = None,
    with_attention: bool = False,
    examples: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes the bundle of a run's best checkpoint and returns its manifest.

    Args:
        calibration: a text file on which int8 is compared with float32; where it costs more than a point of accuracy,
            matrices stay in float32.
        reduce_range: 7-bit encoder weights, for processors without VNNI.
        web_runtime: for the layout "web", a node_modules folder instead of what npm fetches.
        with_attention: also a graph of what each token attends to; a Space has it always.
        examples: sentences that pages offer to try, instead of the usual ones.

    Raises:
        UserError: `run` is no run directory, or holds no checkpoint.
        BundleError: `out` may not be written to, or the graph failed its comparison.
    """
    if dtype == "fp32" and (calibration is not None or reduce_range):
        raise BundleError(f"{'--calibrate' if calibration else '--reduce-range'} is about int8: leave out --dtype fp32")
    if web_runtime is not None and layout != "web":
        raise BundleError("--web-runtime is about the page: add --for web")
    folder = check_space(out) if layout == "space" else out
    check_target(folder)
    config = read_run(run)
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    vocabulary = vocabulary_of(tokenizer)
    model = config.model
    if model.vocab_size < vocabulary.size:
        raise BundleError(
            f"{run}: the model has {model.vocab_size} embeddings for a tokenizer of {vocabulary.size} tokens"
        )
    runtime = find_runtime(web_runtime) if layout == "web" else {}
    step, params = load_params(run, "best")
    origin = {"run": run.resolve().name, "preset": config.preset, "step": step, "versions": versions()}
    memorised = None if config.data or "imported_from" in read_run_file(run).get("data", {}) else SENTENCE
    manifest = write_bundle(
        folder,
        model,
        params,
        tokenizer,
        PRECISIONS[dtype],
        {**origin, **({"memorised": memorised} if memorised else {})},
        layout,
        calibration,
        reduce_range,
        runtime,
        with_attention or layout == "space",
        examples_for(tokenizer, vocabulary, examples, memorised),
    )
    if layout == "space":
        write_space(out, manifest)
    return manifest


def write_bundle(
    out: Path,
    model: ModelConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    precision: Precision,
    origin: Mapping[str, Any],
    layout: Layout = "predictor",
    calibration: Path | None = None,
    reduce_range: bool = False,
    runtime: Mapping[str, bytes] | None = None,
    with_attention: bool = False,
    examples: Sequence[str] = (),
) -> dict[str, Any]:
    """Builds, compares and writes; returns the manifest."""
    if bad := [name for name, array in _leaves(params) if not np.isfinite(array).all()]:
        raise BundleError(f"the checkpoint holds values that are not finite in {bad[0]}: the training diverged")
    vocabulary = vocabulary_of(tokenizer)
    keep, calibrated = frozenset[str](), {}
    if calibration is not None:
        keep, measured = calibrate(model, params, tokenizer, vocabulary, calibration, reduce_range)
        calibrated = {"calibration": measured}

    def adjust(plain: Precision) -> Precision:
        return adjusted(plain, keep, reduce_range)

    precision = precision if precision is FP32 else adjust(precision)
    with new_bundle(out) as folder:
        graph_file = folder / FAST_GRAPH
        graph_file.parent.mkdir()
        (reference, embed), shapes = jax_sides(model, params), parity_shapes(model.max_length)
        attend = jax_attention(model, params) if with_attention else None
        parities, embeddings, attention = {}, {}, {}
        for step in dict.fromkeys((FP32, precision)):  # int8 too is built on a graph that is right in float32
            fill_mask_graph(model, params, step).write(graph_file)
            parities[step.name] = compare(reference, onnx_forward(graph_file), vocabulary.size, shapes)
            check(step, parities[step.name])
            embed_graph(model, params, step).write_sharing(folder / EMBED_GRAPH, graph_file)
            found = onnx_embed(folder / EMBED_GRAPH)
            embeddings[step.name] = compare_embeddings(embed, found, vocabulary.size, shapes)
            check(step, embeddings[step.name])
            if attend is not None:
                attention[step.name] = write_attention(folder, model, params, step, attend, vocabulary.size)
        saturated = {}
        if precision is not FP32 and not reduce_range:
            on, texts = _texts(model, tokenizer, vocabulary, calibration)
            saturated = {"saturation": {"on": on, **saturation.measure(model, params, precision, texts)}}
        graphs, hub_parity = [FAST_GRAPH, EMBED_GRAPH], {}
        if attention:
            graphs.append(ATTENTION_GRAPH)
        if layout == "hub":
            hub_parity = {"hub": write_hub(folder, model, params, vocabulary.size, precision.name, adjust)}
            graphs += hub_files(precision.name)
        web_parity = {}
        if layout == "web":
            write_page(folder, runtime or find_runtime())
        if layout == "web" and precision is not FP32:
            web, file = adjust(INT8_WEB), folder / WEB_GRAPH
            fill_mask_graph(model, params, web).write_sharing(file, graph_file)
            parity = compare(reference, onnx_forward(file), vocabulary.size, shapes)
            check(web, parity)
            web_parity = {"web": {web.name: asdict(parity)}}
            graphs.append(WEB_GRAPH)
        text = {role: _text(tokenizer, getattr(vocabulary, role)) for role in ("mask", "pad", "unk", "cls", "sep")}
        (folder / TOKENIZER).write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
        _write_json(folder / CONFIG, hf_config(model, vocabulary.pad, vocabulary.cls, vocabulary.sep))
        _write_json(folder / TOKENIZER_CONFIG, hf_tokenizer_config(text, model.max_length))
        used = set(tokenizer.get_vocab(with_added_tokens=True).values())
        facts = {
            "dtype": precision.name,
            **({} if precision is FP32 else {"int8": {**assumptions(reduce_range), **saturated}}),
            "vocab_size": model.vocab_size,
            "tokens": {
                **{
                    role: {"text": text[role], "id": getattr(vocabulary, role)}
                    for role in text
                    if text[role] is not None
                },
                "special": list(vocabulary.special),
                "unused": [id for id in range(model.vocab_size) if id not in used],
            },
            "limits": limits(model, vocabulary),
            "graphs": {name: ports(folder, name) for name in graphs},
            "parity": {
                "reference": "jax_mlm.model, float32, CPU, random tokens",
                "shapes": [list(shape) for shape in shapes],
                **{name: asdict(parity) for name, parity in parities.items()},
                "embeddings": {name: asdict(parity) for name, parity in embeddings.items()},
                **({"attention": attention} if attention else {}),
                **hub_parity,
                **web_parity,
                **calibrated,
            },
            "examples": list(examples),
            "origin": dict(origin),
        }
        seal(folder, facts)
    return bundle.read_manifest(out)


# ---- facts for the manifest ----------------------------------------------------------------------


def limits(model: ModelConfig, vocabulary: Vocabulary) -> dict[str, int]:
    asked = Limits(max_length=model.max_length, max_top_k=vocabulary.size)
    return {name: getattr(asked, name) for name in LARGEST}


def assumptions(reduce_range: bool) -> dict[str, Any]:
    """What int8 asks of a processor: products of 8-bit weights, added in pairs, need more than 16 bits."""
    exact = "nothing: the sum of two products of an encoder matrix fits into 16 bits"
    usual = "VNNI or Arm's dot product; with AVX2 or AVX-512 alone sums saturate, unless the weights have 7 bits"
    usual += " (--reduce-range) or onnxruntime is asked for exact, slower kernels, as FillMask does on Linux"
    return {"weight_bits": 7 if reduce_range else 8, "assumes": exact if reduce_range else usual}


def _texts(
    model: ModelConfig, tokenizer: Tokenizer, vocabulary: Vocabulary, calibration: Path | None
) -> tuple[str, list[np.ndarray]]:
    """Real text where some was given, or random tokens; and which of them."""
    if calibration is not None:
        asked = queries(calibration, tokenizer, vocabulary, model.max_length)
        return calibration.name, [ids[0] for ids, _, _ in asked[: saturation.TEXTS]]
    rng, length = np.random.default_rng(0), min(saturation.TOKENS, model.max_length)
    return "random tokens", list(rng.integers(0, vocabulary.size, (saturation.TEXTS, length)))


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _text(tokenizer: Tokenizer, id: int | None) -> str | None:
    return None if id is None else tokenizer.id_to_token(id)


def _leaves(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, np.ndarray]]:
    found = []
    for name, node in tree.items():
        found += _leaves(node, f"{path}{name}.") if isinstance(node, Mapping) else [(path + name, np.asarray(node))]
    return found


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
