"""8-bit weights: what is stored in int8, and which of onnxruntime's kernels multiplies it.

Encoder matrices: QInt8 per output column, activations quantised as they come, one scale for all of them
(DynamicQuantizeMatMul: of the kernels tried it was the fastest from a few tokens up).
Table: 8 bits in blocks along each row, multiplied by MatMulNBits and read by GatherBlockQuantized, so that it is stored
once although it is both the embedding and the projection. At one position this is five times faster than dynamic
quantisation of a transposed table, and its activations have scales of their own for each position.
"""

from __future__ import annotations

import numpy as np

from mlm_onnx.graph import FP32, Precision
from mlm_onnx.onnx_file import CONTRIB, Graph

LARGEST_BLOCK, SMALLEST_BLOCK = 128, 16
ZERO = 128
"""Of the table's unsigned bytes."""


def quantize_columns(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [in, out] → int8 of the same shape and scales [out], symmetric."""
    scale = _scale(np.abs(kernel).max(axis=0))
    return np.clip(np.rint(kernel / scale), -127, 127).astype(np.int8), scale


def quantize_blocks(table: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Table [V, E] → uint8 around 128 [V, E / block, block] and scales [V, E / block]."""
    blocks = table.reshape(table.shape[0], -1, block)
    scale = _scale(np.abs(blocks).max(axis=-1))
    return (np.clip(np.rint(blocks / scale[..., None]), -127, 127) + ZERO).astype(np.uint8), scale


def block_size(width: int) -> int | None:
    """The largest block that divides the table's width; None where none of those that onnxruntime knows does."""
    size = LARGEST_BLOCK
    while size >= SMALLEST_BLOCK:
        if width % size == 0:
            return size
        size //= 2
    return None


def linear_int8(g: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> str:
    values, scale = quantize_columns(kernel)
    weights = (g.weight(f"{name}.kernel.int8", values), g.weight(f"{name}.kernel.scale", scale))
    extra = () if bias is None else ("", g.weight(f"{name}.bias", bias))
    return g.op("DynamicQuantizeMatMul", x, *weights, *extra, domain=CONTRIB)


def lookup_int8(g: Graph, ids: str, name: str, table: np.ndarray) -> str:
    block = block_size(table.shape[1])
    if block is None:
        return FP32.lookup(g, ids, name, table)
    values, scale = _stored(g, name, table, block)
    scale = g.op("Unsqueeze", scale, g.ints(-1))
    facts = {"gather_axis": 0, "quantize_axis": 2, "block_size": block, "bits": 8}
    rows = g.op("GatherBlockQuantized", values, ids, scale, domain=CONTRIB, **facts)
    return g.op("Reshape", rows, g.ints(0, 0, table.shape[1]))


def project_int8(g: Graph, x: str, name: str, table: np.ndarray) -> str:
    block = block_size(table.shape[1])
    if block is None:
        return FP32.project(g, x, name, table)
    values, scale = _stored(g, name, table, block)
    facts = {"K": table.shape[1], "N": table.shape[0], "bits": 8, "block_size": block, "accuracy_level": 4}
    return g.op("MatMulNBits", x, values, scale, domain=CONTRIB, **facts)


INT8 = Precision("int8", linear_int8, lookup_int8, project_int8)


def _scale(largest: np.ndarray) -> np.ndarray:
    return (np.where(largest > 0, largest, 1.0) / 127).astype(np.float32)


def _stored(g: Graph, name: str, table: np.ndarray, block: int) -> tuple[str, str]:
    values, scale = quantize_blocks(table, block)
    return g.weight(f"{name}.uint8", values), g.weight(f"{name}.scale", scale)
