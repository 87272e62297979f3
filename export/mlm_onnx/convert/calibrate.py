"""Measure what int8 costs on real text, and choose the matrices that must stay in float32 to keep that small."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import ModelConfig
from jax_mlm.data.tokenizer import Vocabulary, as_text
from jax_mlm.model.encoder import Params
from mlm_onnx.bundle.layout import BundleError, Json
from mlm_onnx.convert.onnx_file import Graph
from mlm_onnx.convert.parity import onnx_side, open_session
from mlm_onnx.convert.precision import FP32, Precision
from mlm_onnx.convert.quantize import INT8, adjusted
from mlm_onnx.convert.targets import FILL_MASK

MASKED = 0.15
"""Fraction of a text's tokens that is hidden, all replaced by the mask token."""
LONGEST, MOST, FEWEST = 128, 2000, 100
"""Most tokens per text; most hidden tokens in total, and fewest (with fewer, the result would mean nothing)."""
ALLOWED = 0.01
"""Loss of accuracy from int8 above which matrices stay in float32."""
SAMPLE = 16
"""Number of texts on which the matrices are ranked."""
Query = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(ids [1, S] with masks in them, their positions [1, P], the hidden ids [P])."""
Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(ids, positions) → logits [1, P, V]."""


def queries(file: Path, tokenizer: Tokenizer, vocabulary: Vocabulary, max_length: int) -> list[Query]:
    """Return the lines of a text file, each with some tokens hidden, the same ones on every call."""
    if not file.is_file():
        raise BundleError(f"--calibrate {file}: no such file")
    rng, asked, hidden = np.random.default_rng(0), [], 0
    reader = as_text(tokenizer)  # as in training: what looks like a special token in a text is not one
    before, after = ([] if id is None else [id] for id in (vocabulary.cls, vocabulary.sep))

    def frame(ids: list[int]) -> list[int]:
        return [*before, *ids[: min(LONGEST, max_length) - len(before) - len(after)], *after]

    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            ids = np.array(frame(reader.encode(line.strip(), add_special_tokens=False).ids), np.int64)
            eligible = np.flatnonzero(~np.isin(ids, vocabulary.special))
            if len(eligible) < 2:
                continue
            at = np.sort(rng.permutation(eligible)[: max(1, round(MASKED * len(eligible)))])
            true = ids[at].copy()
            ids[at] = vocabulary.mask
            asked.append((ids[None], at[None], true))
            hidden += len(at)
            if hidden >= MOST:
                break
    if hidden < FEWEST:
        raise BundleError(f"--calibrate {file}: has only {hidden} tokens to hide; at least {FEWEST} are needed")
    return asked


def calibrate(
    model: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    file: Path,
    reduce_range: bool = False,
) -> tuple[frozenset[str], Json]:
    """Return the encoder matrices that stay in float32 (usually none), and the measurements for the manifest."""
    asked = queries(file, tokenizer, vocabulary, model.max_length)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:

        def run(precision: Precision) -> Forward:
            file = Path(folder) / "g.onnx"
            FILL_MASK.build(model, params, precision).write(file)
            ask = onnx_side(open_session(file, FILL_MASK.comparison.options))
            return lambda ids, at: ask(input_ids=ids, positions=at)

        def measure(keep: Collection[str]) -> Json:
            return against(expected, _firsts(run(adjusted(INT8, keep, reduce_range)), asked), asked)

        exact = run(FP32)
        expected = _firsts(exact, asked)
        keep: frozenset[str] = frozenset()
        plain = result = measure(keep)
        if result["drop"] > ALLOWED:
            ranked = _ranked(model, params, exact, run, asked[:SAMPLE], reduce_range)
            count = 1
            while result["drop"] > ALLOWED and len(keep) < len(ranked):
                keep = frozenset(ranked[:count])
                result = measure(keep)
                count *= 2
    origin = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "texts": len(asked)}
    kept = {"kept_in_fp32": sorted(keep), "before_keeping": plain} if keep else {"kept_in_fp32": []}
    return keep, {**origin, **result, **kept}


def against(expected: np.ndarray, int8: np.ndarray, asked: Sequence[Query]) -> Json:
    """Compare the first answers in int8 with those in float32, and both with the truth."""
    truth = np.concatenate([true for _, _, true in asked])
    exact, coarse = float((expected == truth).mean()), float((int8 == truth).mean())
    agreement = float((expected == int8).mean())
    accuracy = {"fp32": exact, "int8": coarse}
    return {"tokens": len(truth), "top1_agreement": agreement, "accuracy": accuracy, "drop": exact - coarse}


def _firsts(forward: Forward, asked: Sequence[Query]) -> np.ndarray:
    """Return the likeliest id at each hidden token, running one text at a time, as the predictor does in int8."""
    return np.concatenate([forward(ids, at)[0].argmax(-1) for ids, at, _ in asked])


def _ranked(
    model: ModelConfig,
    params: Params,
    exact: Forward,
    run: Callable[[Precision], Forward],
    asked: Sequence[Query],
    reduce_range: bool,
) -> list[str]:
    """Return the encoder matrices, most harmful first: ranked by how much each, alone in int8, disturbs the logits."""
    names: dict[str, None] = {}

    def record(g: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> str:
        names[name.removesuffix(".query").removesuffix(".key_value")] = None
        return FP32.linear(g, x, name, kernel, bias)

    FILL_MASK.build(model, params, Precision("fp32", record, FP32.lookup, FP32.project))
    wanted = [exact(ids, at) for ids, at, _ in asked]
    harm = {}
    for name in names:
        alone = adjusted(INT8, set(names) - {name}, reduce_range)
        forward = run(Precision("int8", alone.linear, FP32.lookup, FP32.project))
        errors = [np.square(forward(ids, at) - want).mean() for (ids, at, _), want in zip(asked, wanted, strict=True)]
        harm[name] = float(np.mean(errors))
    return sorted(harm, key=harm.__getitem__, reverse=True)
