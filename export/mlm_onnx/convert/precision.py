"""How matrices and tables are stored and multiplied: float32 here, int8 in `quantize`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlm_onnx.convert.onnx_file import Graph

Linear = Callable[[Graph, str, str, np.ndarray, np.ndarray | None], str]
"""(graph, x [..., in], name, kernel [in, out], bias [out] or None) → [..., out]."""


Lookup = Callable[[Graph, str, str, np.ndarray], str]
"""(graph, ids [B, S], name, table [V, E]) → rows [B, S, E]."""


Projection = Callable[[Graph, str, str, np.ndarray], str]
"""(graph, x [N, E], name, table [V, E]) → x · tableᵀ [N, V]. A lookup shares the table of that name."""


@dataclass(frozen=True)
class Precision:
    """How the large matrices are stored and multiplied; everything else is float32."""

    name: str
    linear: Linear
    lookup: Lookup
    project: Projection


def linear_fp32(g: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> str:
    y = g.op("MatMul", x, g.weight(f"{name}.kernel", kernel))
    return y if bias is None else g.op("Add", y, g.weight(f"{name}.bias", bias))


def lookup_fp32(g: Graph, ids: str, name: str, table: np.ndarray) -> str:
    return g.op("Gather", g.weight(name, table), ids, axis=0)


def project_fp32(g: Graph, x: str, name: str, table: np.ndarray) -> str:
    y = g.op("MatMul", g.weight(name, table), g.op("Transpose", x, perm=[1, 0]))
    return g.op("Transpose", y, perm=[1, 0])


def project_all_fp32(g: Graph, x: str, name: str, table: np.ndarray) -> str:
    return g.op("Gemm", x, g.weight(name, table), transB=1)


FP32 = Precision("fp32", linear_fp32, lookup_fp32, project_fp32)


FP32_HUB = Precision("fp32", linear_fp32, lookup_fp32, project_all_fp32)
"""For logits at many positions, where the repacked copy of the table pays off."""
