"""8-bit weights: what is stored in int8, and which onnxruntime kernels multiply it.

Encoder matrices: QInt8 per output column; activations are quantised dynamically, with one scale for all of them
(DynamicQuantizeMatMul, the fastest of the kernels tried from a few tokens up).
Table: 8 bits in blocks along each row, multiplied by MatMulNBits and read by GatherBlockQuantized, so that it is stored
once although it is both the embedding and the projection. At one position this is five times faster than dynamic
quantisation of a transposed table, and its activations have separate scales for each position.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from mlm_onnx.convert.onnx_file import CONTRIB, Graph
from mlm_onnx.convert.precision import FP32, FP32_HUB, Precision

LARGEST_BLOCK, SMALLEST_BLOCK = 128, 16
REDUCED = 63
"""Largest magnitude of a 7-bit weight."""
TABLE = "token_table"
"""The name by which the table is kept, with the projection onto the vocabulary."""
ZERO = 128
"""Zero point of the table's uint8 weights."""
ROUNDER = 1.5 * 2**23
"""Added to a float32 and subtracted again, it rounds to the nearest integer; a bundle may not contain ONNX's Round."""


def quantize_columns(kernel: np.ndarray, largest: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a kernel [in, out] to int8 of the same shape, from -largest to largest, and scales [out]."""
    scale = _scale(np.abs(kernel).max(axis=0), largest)
    return np.clip(np.rint(kernel / scale), -largest, largest).astype(np.int8), scale


def quantize_blocks(table: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantise a table [V, E] to uint8 around 128 [V, E / block, block] and scales [V, E / block]."""
    blocks = table.reshape(table.shape[0], -1, block)
    scale = _scale(np.abs(blocks).max(axis=-1))
    return (np.clip(np.rint(blocks / scale[..., None]), -127, 127) + ZERO).astype(np.uint8), scale


def block_size(width: int) -> int | None:
    """Return the largest block size of onnxruntime that divides the table's width; None if none does."""
    size = LARGEST_BLOCK
    while size >= SMALLEST_BLOCK:
        if width % size == 0:
            return size
        size //= 2
    return None


def linear_int8(g: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray | None, largest: int = 127) -> str:
    values, scale = quantize_columns(kernel, largest)
    weights = (g.weight(f"{name}.kernel.int8", values), g.weight(f"{name}.kernel.scale", scale))
    extra = () if bias is None else ("", g.weight(f"{name}.bias", bias))
    return g.op("DynamicQuantizeMatMul", x, *weights, *extra, domain=CONTRIB)


def lookup_int8(g: Graph, ids: str, name: str, table: np.ndarray) -> str:
    block = block_size(table.shape[1])
    if block is None:
        return FP32.lookup(g, ids, name, table)
    values, scale = _stored(g, name, table, block)
    scale = g.op("Unsqueeze", scale, g.ints(-1))
    attributes = {"gather_axis": 0, "quantize_axis": 2, "block_size": block, "bits": 8}
    rows = g.op("GatherBlockQuantized", values, ids, scale, domain=CONTRIB, **attributes)
    return g.op("Reshape", rows, g.ints(0, 0, table.shape[1]))


def project_int8(g: Graph, x: str, name: str, table: np.ndarray) -> str:
    block = block_size(table.shape[1])
    if block is None:
        return FP32.project(g, x, name, table)
    values, scale = _stored(g, name, table, block)
    attributes = {"K": table.shape[1], "N": table.shape[0], "bits": 8, "block_size": block, "accuracy_level": 4}
    return g.op("MatMulNBits", x, values, scale, domain=CONTRIB, **attributes)


def project_web(g: Graph, x: str, name: str, table: np.ndarray) -> str:
    """Compute what `project_int8` does from the same stored table, with operators that are fast in WASM.

    In WASM, MatMulNBits would convert the whole table to float32 on every run. As in `project_int8`, each block of each
    position's activations has its own scale, so that the answers are the same; blocks are multiplied as integers.
    """
    block = block_size(table.shape[1])
    if block is None:
        return FP32.project(g, x, name, table)
    values, scale = _stored(g, name, table, block)
    values = g.op("Transpose", values, perm=[1, 2, 0])  # done once, when the session opens
    scale = g.op("Unsqueeze", g.op("Transpose", scale, perm=[1, 0]), g.ints(1))
    blocks = g.op("Transpose", g.op("Reshape", x, g.ints(0, table.shape[1] // block, block)), perm=[1, 0, 2])
    largest = g.op("Max", g.op("ReduceMax", g.op("Abs", blocks), g.ints(2)), g.scalar(1e-30))
    step = g.op("Mul", largest, g.scalar(1 / 127))
    rounded = g.op("Add", g.op("Div", blocks, step), g.scalar(ROUNDER + ZERO))
    quantised = g.op("Cast", g.op("Sub", rounded, g.scalar(ROUNDER)), to=g.type(np.uint8))
    middle = g.weight(f"{name}.zero", np.array(ZERO, np.uint8))
    product = g.op("MatMulInteger", quantised, values, middle, middle)
    product = g.op("Mul", g.op("Mul", g.op("Cast", product, to=g.type(np.float32)), scale), step)
    return g.op("ReduceSum", product, g.ints(0), keepdims=0)


def linear_hub(g: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray | None, largest: int = 127) -> str:
    values, scale = quantize_columns(kernel, largest)
    y = _multiply(g, x, g.weight(f"{name}.kernel.int8", values), g.weight(f"{name}.kernel.scale", scale))
    return y if bias is None else g.op("Add", y, g.weight(f"{name}.bias", bias))


def lookup_hub(g: Graph, ids: str, name: str, table: np.ndarray) -> str:
    values, scale = _stored_rows(g, name, table)
    rows = g.op("Cast", g.op("Gather", values, ids, axis=0), to=g.type(np.float32))
    return g.op("Mul", rows, g.op("Unsqueeze", g.op("Gather", scale, ids, axis=0), g.ints(-1)))


def project_hub(g: Graph, x: str, name: str, table: np.ndarray) -> str:
    values, scale = _stored_rows(g, name, table)
    return _multiply(g, x, g.op("Transpose", values, perm=[1, 0]), scale)


def adjusted(int8: Precision, keep: Collection[str] = (), reduce_range: bool = False) -> Precision:
    """Return the precision with some matrices left in float32, or with those of the encoder in 7 bits.

    Without VNNI, AVX2 and AVX-512 add pairs of 8-bit products in 16 bits, which can saturate; 7-bit weights cannot.
    """

    def linear(g: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> str:
        if name.removesuffix(".query").removesuffix(".key_value") in keep:
            return FP32.linear(g, x, name, kernel, bias)
        return int8.linear(g, x, name, kernel, bias, **({"largest": REDUCED} if reduce_range else {}))

    exact = FP32_HUB if int8 is INT8_HUB else FP32
    tables = {"lookup": exact.lookup, "project": exact.project} if TABLE in keep else {}
    return replace(int8, linear=linear, **tables)


def _multiply(g: Graph, x: str, values: str, scale: str) -> str:
    """Compute x · values · scale with standard ONNX operators, in the order that onnxruntime recognises and fuses."""
    quantised, step, zero = g.ops("DynamicQuantizeLinear", x, outputs=3)
    product = g.op("Cast", g.op("MatMulInteger", quantised, values, zero), to=g.type(np.float32))
    return g.op("Mul", product, g.op("Mul", step, scale))


def _stored_rows(g: Graph, name: str, table: np.ndarray) -> tuple[str, str]:
    values, scale = quantize_columns(table.T)
    return g.weight(f"{name}.int8", np.ascontiguousarray(values.T)), g.weight(f"{name}.scale", scale)


INT8_HUB = Precision("int8", linear_hub, lookup_hub, project_hub)
"""For other loaders, onnxruntime-web among them: QInt8 as transformers.js's own script writes it (here with one scale
per column, or per row of the table), without contrib operators. The table is transposed when the session opens."""
INT8 = Precision("int8", linear_int8, lookup_int8, project_int8)
INT8_WEB = Precision("int8", linear_int8, lookup_int8, project_web)
"""For onnxruntime's WASM, using the weights that INT8 stores."""


def _scale(magnitude: np.ndarray, largest: int = 127) -> np.ndarray:
    return (np.where(magnitude > 0, magnitude, 1.0) / largest).astype(np.float32)


def _stored(g: Graph, name: str, table: np.ndarray, block: int) -> tuple[str, str]:
    values, scale = quantize_blocks(table, block)
    return g.weight(f"{name}.uint8", values), g.weight(f"{name}.scale", scale)
