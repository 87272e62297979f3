"""The graphs that optimum and transformers.js load: full logits, padding, Hugging Face's names for inputs and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jax_mlm.config import ModelConfig
from mlm_onnx.bundle.layout import HUB_GRAPH, HUB_QUANTIZED, BundleError
from mlm_onnx.convert.graphs import masked_lm_graph
from mlm_onnx.convert.parity import check, compare_padded, jax_padded, onnx_padded, padded_shapes
from mlm_onnx.convert.precision import FP32_HUB, Precision
from mlm_onnx.convert.quantize import INT8_HUB

GRAPHS: Mapping[str, Precision] = {HUB_GRAPH: FP32_HUB, HUB_QUANTIZED: INT8_HUB}


def hub_files(dtype: str) -> list[str]:
    """The float32 graph always; the int8 one unless everything is to stay in float32."""
    return [name for name, precision in GRAPHS.items() if precision.name in ("fp32", dtype)]


def write_hub(
    folder: Path,
    model: ModelConfig,
    params: Mapping[str, Any],
    vocab_size: int,
    dtype: str,
    adjust: Callable[[Precision], Precision],
) -> dict[str, Any]:
    """Writes the graphs into the bundle, each compared with the JAX model; returns what goes into the manifest.

    `adjust` makes of a plain int8 the one that the user or the calibration asked for.
    """
    reference, shapes = jax_padded(model, params), padded_shapes(model.max_length)
    measured = {}
    for name in hub_files(dtype):
        precision, file = GRAPHS[name], folder / name
        precision = precision if precision.name == "fp32" else adjust(precision)
        file.parent.mkdir(exist_ok=True)
        try:
            masked_lm_graph(model, params, precision).write_single(file)
        except ValueError as error:
            raise BundleError(f"--for hub: {error}; use --for predictor") from None
        parity = compare_padded(reference, onnx_padded(file), vocab_size, shapes, model.token_types)
        check(precision, parity)
        measured[precision.name] = asdict(parity)
    return {"shapes": [list(shape) for shape in shapes], **measured}
