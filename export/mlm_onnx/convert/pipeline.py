"""Run directory → bundle. The only file here that reads a checkpoint.

A bundle is written only after its graphs have been compared with the JAX model, on the weights as trained.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import ModelConfig, TaskConfig
from jax_mlm.data.tokenizer import Vocabulary, load_tokenizer, vocabulary_of
from jax_mlm.hf.config import hf_config
from jax_mlm.hf.directory import in_layout
from jax_mlm.hf.tasks import with_task
from jax_mlm.hf.tokenizer import hf_tokenizer_config
from jax_mlm.model.encoder import Params
from jax_mlm.model.params import leaves
from jax_mlm.presets import SENTENCE
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import TOKENIZER_FILE, read_run, read_run_file, read_task
from jax_mlm.run.lock import target_locked
from mlm_onnx.bundle.layout import COLUMNS, CONFIG, LARGEST, TOKENIZER, TOKENIZER_CONFIG, BundleError, Json, Limits
from mlm_onnx.bundle.read import open_bundle
from mlm_onnx.bundle.write import check_target, new_bundle, seal, write_json
from mlm_onnx.convert.asked import Tuned, labelled_examples, masked_words
from mlm_onnx.convert.calibrate import calibrate
from mlm_onnx.convert.examples import examples_for
from mlm_onnx.convert.heads import KINDS, targets_of
from mlm_onnx.convert.parity import Shapes
from mlm_onnx.convert.quantize import adjusted
from mlm_onnx.convert.reference import Reference
from mlm_onnx.convert.request import Request
from mlm_onnx.convert.space import check_space, write_space
from mlm_onnx.convert.targets import types_of, write_target
from mlm_onnx.convert.web import find_runtime, write_page
from mlm_onnx.version import package_version

PACKAGES = ("mlm-onnx", "jax-mlm", "jax", "onnx", "onnxruntime", "tokenizers", "numpy")
DEFAULT = Request()
ROLES = ("mask", "pad", "unk", "cls", "sep")


def convert(run: Path, out: Path, request: Request = DEFAULT) -> Json:
    """Write the bundle of a run's best checkpoint and return its manifest.

    Raises:
        UserError: `run` is not a run directory, or has no checkpoint; or another process is writing to `out`.
        BundleError: `out` may not be overwritten, or a graph failed its comparison.
    """
    folder = check_space(out) if request.layout == "space" else out
    check_target(folder)
    with target_locked(out, "BUNDLE"):
        try:
            return _convert(run, out, folder, request)
        except BaseException:
            with suppress(OSError):  # a Space's folder without its bundle; any other is not there, or not empty
                out.rmdir()
            raise


def _convert(run: Path, out: Path, folder: Path, request: Request) -> Json:
    config, task = read_run(run), read_task(run)
    if task is not None:
        request.check_task(task.kind)
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    vocabulary = vocabulary_of(tokenizer)
    if config.model.vocab_size < vocabulary.size:
        raise BundleError(
            f"{run}: the model has {config.model.vocab_size} embeddings for a tokenizer of {vocabulary.size} tokens"
        )
    step, params = load_params(run, "best")
    versions = {"python": platform.python_version(), **{name: package_version(name) for name in PACKAGES}}
    origin = {"run": run.resolve().name, "preset": config.preset, "step": step, "versions": versions}
    memorised = None if config.data or "imported_from" in read_run_file(run).get("data", {}) else SENTENCE
    origin |= {"memorised": memorised} if memorised else {}
    request = replace(request, examples=examples_for(tokenizer, vocabulary, request.examples, memorised))
    tuned = None if task is None else Tuned(task, config.corpus.length)
    manifest = write_bundle(folder, config.model, params, tokenizer, request, origin, tuned=tuned)
    if request.layout == "space":
        write_space(out, manifest)
    return manifest


def write_bundle(
    out: Path,
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    request: Request,
    origin: Json,
    shapes: Shapes | None = None,
    tuned: Tuned | None = None,
) -> Json:
    """Build the graphs, compare them and write a bundle; return its manifest.

    Args:
        shapes: shapes to compare the graphs on, instead of each comparison's own.
        tuned: what the model was fine-tuned for, unless it answers masked queries.
    """
    if bad := next((path for path, array in leaves(params).items() if not np.isfinite(array).all()), None):
        raise BundleError(f"the checkpoint holds values that are not finite in {'.'.join(bad)}: the training diverged")
    runtime = find_runtime(request.web_runtime) if request.layout == "web" else {}
    vocabulary = vocabulary_of(tokenizer)
    params, model, pad = in_layout(params, model, tokenizer, vocabulary)
    keep, calibrated = frozenset[str](), {}
    task = None if tuned is None else tuned.task
    if request.calibration is not None:
        if tuned is None:
            asked = masked_words(model, params, tokenizer, vocabulary, request.calibration)
        else:
            asked = labelled_examples(model, params, tokenizer, tuned, request.calibration)
        keep, calibration = calibrate(asked, request.calibration, request.reduce_range)
        calibrated = {"calibration": calibration}
    with new_bundle(out) as folder:
        graphs, parity = _write_graphs(folder, Reference(model, params, vocabulary.size, task), request, keep, shapes)
        if runtime:
            write_page(folder, runtime, "fill" if task is None else "tasks")
        texts = {role: _text(tokenizer, getattr(vocabulary, role)) for role in ROLES}
        (folder / TOKENIZER).write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
        values = hf_config(model, pad, vocabulary.cls, vocabulary.sep)
        write_json(folder / CONFIG, values if task is None else with_task(values, task))
        write_json(folder / TOKENIZER_CONFIG, hf_tokenizer_config(texts, model.max_length, types_of(model)))
        manifest = {
            "dtype": request.dtype,
            **({"int8": assumptions(request.reduce_range)} if request.dtype == "int8" else {}),
            "vocab_size": model.vocab_size,
            "tokens": _tokens(model, tokenizer, vocabulary, texts),
            "limits": limits(model.max_length if tuned is None else tuned.length, vocabulary),
            **({} if tuned is None else head_fields(tuned.task)),
            "graphs": graphs,
            "parity": {"reference": "jax_mlm.model, float32, CPU, random tokens", **parity, **calibrated},
            "examples": list(request.examples),
            "origin": dict(origin),
        }
        seal(folder, manifest)
        return _opened(folder, out, task is not None)


def _opened(folder: Path, out: Path, tuned: bool) -> Json:
    """Return the manifest of a bundle that is about to become `out`, once it is read as whoever answers reads it."""
    try:
        bundle = open_bundle(folder, full=False)
        if tuned:
            bundle.head()
    except BundleError as error:
        raise BundleError(
            f"nothing was written, as the bundle could not be opened: {str(error).replace(str(folder), str(out))}"
        ) from None
    return bundle.manifest


def _write_graphs(
    folder: Path, reference: Reference, request: Request, keep: frozenset[str], shapes: Shapes | None
) -> tuple[Json, Json]:
    """Write the requested graphs; return their inputs and outputs, and their parity.

    Graphs that are only compared go to a separate folder, so that each graph finds the weights of its own dtype.
    """
    ports: dict[str, Json] = {}
    parity: dict[str, Any] = {}  # figures by dtype, in sections for some graphs
    with tempfile.TemporaryDirectory(prefix=".compared-", dir=folder) as compared:
        for target in targets_of(reference.task):
            dtypes = target.dtypes(request)
            asked = shapes or target.comparison.shapes(reference.config.max_length)
            section = parity.setdefault(target.section, {}) if target.section and dtypes else parity
            if dtypes and target.shapes_recorded:
                section["shapes"] = [list(shape) for shape in asked]
            for dtype in dtypes:
                plain = target.precisions[dtype]
                precision = plain if dtype == "fp32" else adjusted(plain, keep, request.reduce_range)
                here = folder if dtype == dtypes[-1] else Path(compared)
                section[dtype], ports[target.file] = write_target(here, target, reference, precision, asked)
    return ports, parity


# ---- entries of the manifest ---------------------------------------------------------------------


def limits(length: int, vocabulary: Vocabulary) -> dict[str, int]:
    asked = Limits(max_length=length, max_top_k=vocabulary.size)
    return {name: getattr(asked, name) for name in LARGEST}


def head_fields(task: TaskConfig) -> Json:
    """Return what the manifest of a fine-tuned model has besides."""
    fields: dict[str, Any] = {
        "task": KINDS[task.kind],
        "labels": list(task.labels),
        "windows": {"overlap": task.overlap},
    }
    if task.kind == "classify":
        fields |= {"problem": task.problem, "pair": task.pair}
    elif task.kind == "answer":
        fields["answers"] = {"max_tokens": task.max_answer, "no_answer": task.no_answer}
    else:
        begins = any(label.startswith("B-") for label in task.labels)
        fields["tagging"] = {"scheme": "IOB2" if begins else "IO", "pieces": "first"}
    columns = {part: name for part, name in zip(COLUMNS, task.columns, strict=True) if name}
    return {**fields, "columns": columns} if columns else fields


def assumptions(reduce_range: bool) -> Json:
    """Describe what int8 requires of a processor: sums of two products of 8-bit weights need more than 16 bits."""
    exact = "nothing: the sum of two products of an encoder matrix fits into 16 bits"
    usual = "VNNI or Arm's dot product; with AVX2 or AVX-512 alone sums saturate, unless the weights have 7 bits"
    usual += " (--reduce-range) or onnxruntime is asked for exact, slower kernels, as FillMask does on Linux"
    return {"weight_bits": 7 if reduce_range else 8, "assumes": exact if reduce_range else usual}


def _tokens(model: ModelConfig, tokenizer: Tokenizer, vocabulary: Vocabulary, texts: Mapping[str, str | None]) -> Json:
    used = set(tokenizer.get_vocab(with_added_tokens=True).values())
    known = {role: {"text": text, "id": getattr(vocabulary, role)} for role, text in texts.items() if text is not None}
    unused = [id for id in range(model.vocab_size) if id not in used]
    return {**known, "special": list(vocabulary.special), "unused": unused}


def _text(tokenizer: Tokenizer, id: int | None) -> str | None:
    return None if id is None else tokenizer.id_to_token(id)
