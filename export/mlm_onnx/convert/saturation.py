"""What int8 becomes on processors that add pairs of 8-bit products in 16 bits, emulated in numpy.

There, AVX2 and AVX-512 without VNNI, onnxruntime multiplies unsigned activations by signed weights with vpmaddubsw: the
products of two neighbours along the inner axis, k and k + 1, are added in 16 bits, where a sum beyond ±2¹⁵ is cut off;
only then are pairs added in 32 bits (MLAS: QgemmU8S8KernelAvx2, …Avx512Core). With VNNI nothing is cut off. The table
of the vocabulary is multiplied by another kernel, which is not emulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from jax_mlm.config import ModelConfig
from mlm_onnx.convert.graphs import fill_mask_graph
from mlm_onnx.convert.onnx_file import CONTRIB
from mlm_onnx.convert.parity import Forward
from mlm_onnx.convert.precision import FP32, Precision

SMALLEST, LARGEST = -(1 << 15), (1 << 15) - 1
LARGEST_WEIGHT = 127
TEXTS, TOKENS = 4, 12
"""On which it is emulated, every token asked: seconds for a model of BERT-base's size …"""
MULTIPLICATIONS = 1 << 32
"""… and fewer texts for a larger one."""
MATTERS = 0.02
"""Of the logits' standard deviation: what cutting off may change them by, before it is said to matter; an answer that
changes always does."""
Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(activations, uint8 [R, K]; weights, int8 [K, N]) → their product [R, N], exact in float64."""


@dataclass
class Count:
    """How often a sum of two products was cut off."""

    cut: int = 0
    pairs: int = 0


def exact_product(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    return a.astype(np.float64) @ w.astype(np.float64)


def saturating_product(a: np.ndarray, w: np.ndarray, count: Count) -> np.ndarray:
    """The product with each sum of two neighbours cut off at 16 bits.

    Only pairs of activations that are large enough are looked at: the others cannot reach the limit.
    """
    if a.shape[1] % 2:
        a, w = np.pad(a, ((0, 0), (0, 1))), np.pad(w, ((0, 1), (0, 0)))
    found = exact_product(a, w)
    even, odd = w[::2].astype(np.float32), w[1::2].astype(np.float32)
    for row, result in zip(a.astype(np.float32), found, strict=True):
        first, second = row[::2], row[1::2]
        near = np.flatnonzero((first + second) * LARGEST_WEIGHT > LARGEST)
        sums = first[near, None] * even[near] + second[near, None] * odd[near]
        excess = sums - np.clip(sums, SMALLEST, LARGEST)
        count.cut += int(np.count_nonzero(excess))
        result -= excess.sum(axis=0, dtype=np.float64)
    count.pairs += a.shape[0] * even.size
    return found


def quantise(x: np.ndarray) -> tuple[np.ndarray, np.float32, np.float32]:
    """Activations as onnxruntime quantises them, one scale and zero point for all: (uint8, scale, zero point)."""
    low, high = min(np.float32(0), x.min()), max(np.float32(0), x.max())
    scale = np.float32((high - low) / np.float32(255)) if high > low else np.float32(1)
    zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.float32)
    return np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8), scale, zero


def int8_encoder(model: ModelConfig, params: Mapping[str, Any], precision: Precision) -> ModelProto:
    """The int8 graph with its table in float32, since only the encoder's matrices are emulated."""
    mixed = Precision(precision.name, precision.linear, FP32.lookup, FP32.project)
    return fill_mask_graph(model, params, mixed).model()


def emulate(graph: ModelProto, product: Product) -> Forward:
    """The graph in numpy, its int8 products by `product`."""

    class DynamicQuantizeMatMul(OpRun):
        op_domain = CONTRIB

        def _run(self, x, w, scale, zero_point=None, bias=None):
            quantised, step, zero = quantise(x)
            flat = product(quantised.reshape(-1, x.shape[-1]), w) - zero * w.sum(axis=0, dtype=np.float64)
            y = (flat * step * scale).astype(np.float32).reshape(*x.shape[:-1], -1)
            return (y if bias is None else y + bias,)

    evaluator = ReferenceEvaluator(graph, new_ops=[DynamicQuantizeMatMul])
    return lambda ids, at: evaluator.run(None, {"input_ids": ids, "positions": at})[0]


def measure(
    model: ModelConfig, params: Mapping[str, Any], precision: Precision, texts: Sequence[np.ndarray]
) -> dict[str, Any]:
    """How often sums are cut off without VNNI, and what that does to the answers, for the manifest.

    Args:
        texts: ids of some texts, of which beginnings are taken.
    """
    count, graph = Count(), int8_encoder(model, params, precision)
    whole = emulate(graph, exact_product)
    cut = emulate(graph, lambda a, w: saturating_product(a, w, count))
    most = max(1, MULTIPLICATIONS // max(1, TOKENS * model.layers * 4 * model.width * (model.width + model.ff_width)))
    expected, found = [], []
    for text in texts[: min(TEXTS, most)]:
        ids = text[None, :TOKENS]
        at = np.arange(ids.shape[1])[None]
        expected.append(whole(ids, at)[0])
        found.append(cut(ids, at)[0])
    right, wrong = np.concatenate(expected), np.concatenate(found)
    difference = float(np.square(right - wrong, dtype=np.float64).mean() ** 0.5)
    agreement = float((right.argmax(-1) == wrong.argmax(-1)).mean())
    return {
        "tokens": len(right),
        "pairs": count.cut / max(1, count.pairs),
        "rms_difference": difference,
        "logit_std": float(right.std()),
        "top1_agreement": agreement,
        "matters": bool(agreement < 1 or difference > MATTERS * right.std()),
    }
