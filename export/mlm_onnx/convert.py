"""Run directory → bundle. The only file here that reads a checkpoint, and that needs jax-mlm and onnx.

A bundle is written only after its graph has been compared with the JAX model, on the weights as trained.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from jax_mlm.checkpoint import best_step, load_params
from jax_mlm.config import ModelConfig
from jax_mlm.model import Inputs, make_forward
from jax_mlm.run import TOKENIZER_FILE, read_run
from jax_mlm.tokenizer import Vocabulary, load_tokenizer, vocabulary_of
from mlm_onnx import bundle
from mlm_onnx.bundle import BundleError
from mlm_onnx.graph import FP32, Precision, fill_mask_graph
from mlm_onnx.hf_config import hf_config, hf_tokenizer_config
from mlm_onnx.quantize import INT8

TOLERANCE = 1e-4
"""Largest difference of a logit between ONNX in float32 and JAX."""
COARSEST = 0.25
"""Largest root mean square error of int8 logits, in standard deviations of the logits."""
PRECISIONS = {"int8": INT8, "fp32": FP32}
PACKAGES = ("mlm-onnx", "jax-mlm", "jax", "onnx", "onnxruntime", "tokenizers", "numpy")
Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(ids [B, S], positions [B, P]) → logits [B, P, V]."""


class ParityError(BundleError):
    """The graph does not compute what the JAX model computes, so no bundle was written."""


@dataclass(frozen=True)
class Parity:
    """How far the graph is from the JAX model, over all shapes."""

    max_difference: float
    rms_difference: float
    logit_std: float
    top1_agreement: float


def convert(
    run: Path, out: Path, dtype: Literal["int8", "fp32"] = "int8", layout: Literal["predictor", "hub"] = "predictor"
) -> dict[str, Any]:
    """Writes the bundle of a run's best checkpoint and returns its manifest.

    Raises:
        UserError: `run` is no run directory, or holds no checkpoint.
        BundleError: `out` may not be written to, or the graph failed its comparison.
    """
    if layout == "hub":
        raise BundleError("--for hub is not there yet: use --for predictor")
    bundle.check_target(out)
    config = read_run(run)
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    vocabulary = vocabulary_of(tokenizer)
    model = config.model
    if model.vocab_size < vocabulary.size:
        raise BundleError(
            f"{run}: the model has {model.vocab_size} embeddings for a tokenizer of {vocabulary.size} tokens"
        )
    step, params = load_params(run, best_step(run))
    origin = {"run": run.resolve().name, "preset": config.preset, "step": step, "versions": versions()}
    return write_bundle(out, model, params, tokenizer, PRECISIONS[dtype], origin)


def write_bundle(
    out: Path,
    model: ModelConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    precision: Precision,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """Builds, compares and writes; returns the manifest."""
    if bad := [name for name, array in _leaves(params) if not np.isfinite(array).all()]:
        raise BundleError(f"the checkpoint holds values that are not finite in {bad[0]}: the training diverged")
    vocabulary = vocabulary_of(tokenizer)
    with bundle.new_bundle(out) as folder:
        graph_file = folder / bundle.FAST_GRAPH
        graph_file.parent.mkdir()
        reference, shapes = jax_forward(model, params), parity_shapes(model.max_length)
        parities = {}
        for step in dict.fromkeys((FP32, precision)):  # int8 too is built on a graph that is right in float32
            fill_mask_graph(model, params, step).write(graph_file)
            parities[step.name] = compare(reference, onnx_forward(graph_file), vocabulary.size, shapes)
            check(step, parities[step.name])
        text = {role: _text(tokenizer, getattr(vocabulary, role)) for role in ("mask", "pad", "unk", "cls", "sep")}
        (folder / bundle.TOKENIZER).write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
        _write_json(folder / bundle.CONFIG, hf_config(model, vocabulary.pad, vocabulary.cls, vocabulary.sep))
        _write_json(folder / bundle.TOKENIZER_CONFIG, hf_tokenizer_config(text, model.max_length))
        used = set(tokenizer.get_vocab(with_added_tokens=True).values())
        facts = {
            "dtype": precision.name,
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
            "graphs": {bundle.FAST_GRAPH: ports(graph_file)},
            "parity": {
                "reference": "jax_mlm.model, float32, CPU, random tokens",
                "shapes": [list(shape) for shape in shapes],
                **{name: asdict(parity) for name, parity in parities.items()},
            },
            "origin": dict(origin),
        }
        bundle.seal(folder, facts)
    return bundle.read_manifest(out)


# ---- comparison ----------------------------------------------------------------------------------


def parity_shapes(max_length: int) -> tuple[tuple[int, int, int], ...]:
    """(batch, length, positions): one token, a usual query, several rows, several positions, the longest text."""
    wanted = ((1, 1, 1), (1, 18, 1), (3, 7, 2), (2, 128, 19), (1, max_length, 2))
    return tuple(dict.fromkeys((b, min(s, max_length), min(p, s, max_length)) for b, s, p in wanted))


def jax_forward(model: ModelConfig, params: Mapping[str, Any]) -> Forward:
    """The JAX model in float32 on the CPU, where matrix products are exact to float32."""
    cpu = jax.local_devices(backend="cpu")[0]
    forward = jax.jit(make_forward(model))
    placed = jax.device_put(params, cpu)

    def run(ids: np.ndarray, at: np.ndarray) -> np.ndarray:
        places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
        inputs = Inputs(ids.astype(np.int32), np.ones(ids.shape, np.int32), places)
        with jax.default_device(cpu):
            return np.asarray(forward(placed, inputs, at.astype(np.int32)))

    return run


def onnx_forward(graph_file: Path) -> Forward:
    session = ort.InferenceSession(str(graph_file), _quiet(), providers=["CPUExecutionProvider"])
    return lambda ids, at: session.run(None, {"input_ids": ids, "positions": at})[0]


def compare(reference: Forward, ours: Forward, vocab_size: int, shapes: tuple[tuple[int, int, int], ...]) -> Parity:
    """Random tokens and positions, the same at each call."""
    rng = np.random.default_rng(0)
    worst, squares, spread, agree, rows = 0.0, 0.0, 0.0, 0, 0
    for batch, length, positions in shapes:
        ids = rng.integers(0, vocab_size, (batch, length))
        at = np.stack([rng.permutation(length)[:positions] for _ in range(batch)])
        expected, got = reference(ids, at), ours(ids, at)
        difference = np.abs(expected - got)
        worst = max(worst, float(difference.max())) if np.isfinite(difference).all() else float("inf")
        squares += float(np.square(difference, dtype=np.float64).mean()) * batch * positions
        spread = max(spread, float(expected.std()))
        agree += int((expected.argmax(-1) == got.argmax(-1)).sum())
        rows += batch * positions
    return Parity(worst, (squares / rows) ** 0.5, spread, agree / rows)


def check(precision: Precision, parity: Parity) -> None:
    """Raises ParityError where the graph is not the model."""
    if precision is FP32 and not parity.max_difference <= TOLERANCE:
        raise ParityError(
            f"the graph differs from the JAX model by {parity.max_difference:.1e} in a logit (at most {TOLERANCE:g} "
            f"is allowed), so nothing was written: please report this with the run's run.json"
        )
    if not parity.rms_difference <= COARSEST * parity.logit_std:
        raise ParityError(
            f"{precision.name} changes the logits by {parity.rms_difference:.2g} on average, where they spread over "
            f"{parity.logit_std:.2g}, so nothing was written: use --dtype fp32"
        )


# ---- facts for the manifest ----------------------------------------------------------------------


def limits(model: ModelConfig, vocabulary: Vocabulary) -> dict[str, int]:
    asked = bundle.Limits(max_length=model.max_length, max_top_k=vocabulary.size)
    return {name: getattr(asked, name) for name in bundle.LARGEST}


def ports(graph_file: Path) -> dict[str, Any]:
    """Inputs and outputs of a graph as onnxruntime sees them."""
    session = ort.InferenceSession(str(graph_file), _quiet(), providers=["CPUExecutionProvider"])

    def facts(ports: Any) -> list[dict[str, Any]]:
        names = {"tensor(int64)": "int64", "tensor(float)": "float32"}
        return [{"name": port.name, "dtype": names[port.type], "shape": port.shape} for port in ports]

    return {"inputs": facts(session.get_inputs()), "outputs": facts(session.get_outputs())}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def _quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def _text(tokenizer: Tokenizer, id: int | None) -> str | None:
    return None if id is None else tokenizer.id_to_token(id)


def _leaves(tree: Mapping[str, Any], path: str = "") -> list[tuple[str, np.ndarray]]:
    found = []
    for name, node in tree.items():
        found += _leaves(node, f"{path}{name}.") if isinstance(node, Mapping) else [(path + name, np.asarray(node))]
    return found


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
