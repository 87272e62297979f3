"""Measure what int8 costs on real text, and choose the matrices that must stay in float32 to keep that small."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from mlm_onnx.bundle.layout import Json
from mlm_onnx.convert.asked import Asked
from mlm_onnx.convert.onnx_file import Graph
from mlm_onnx.convert.parity import ParityError, Side, onnx_side, open_session
from mlm_onnx.convert.precision import FP32, Precision
from mlm_onnx.convert.quantize import INT8, TABLE, adjusted

SAMPLE = 16
"""Number of rows on which the matrices are ranked."""


def calibrate(asked: Asked, file: Path, reduce_range: bool = False) -> tuple[frozenset[str], Json]:
    """Return the matrices that stay in float32 (usually none), and the measurements for the manifest.

    The table is the last that is kept. One row is computed at a time, as the predictor does in int8.

    Raises:
        ParityError: a fine-tuned model's answers in float32 are not JAX's.
    """
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:

        def run(precision: Precision, name: str = "tried") -> Side:
            graph = Path(folder) / f"{name}.onnx"
            asked.target.build(asked.model, asked.params, precision).write(graph)
            return onnx_side(open_session(graph, asked.target.comparison.options))

        def results(side: Side) -> list[np.ndarray]:
            return [asked.reduce(side(**row)) for row in asked.rows]

        def measure(keep: Collection[str]) -> Json:
            return asked.judge(expected, results(run(adjusted(INT8, keep, reduce_range))))

        exact = run(FP32, "exact")  # in a file of its own: its session reads the weights there until the end
        expected = results(exact)
        keep: frozenset[str] = frozenset()
        plain = result = measure(keep)
        check_answers(result)
        if result["drop"] > asked.allowed:
            ranked = [*_ranked(asked, exact, run, reduce_range), TABLE]
            count = 1
            while result["drop"] > asked.allowed and len(keep) < len(ranked):
                keep = frozenset(ranked[:count])
                result = measure(keep)
                count *= 2
    origin = {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "texts": asked.texts}
    kept = {"kept_in_fp32": sorted(keep), "before_keeping": plain} if keep else {"kept_in_fp32": []}
    return keep, {**origin, **result, **kept}


def check_answers(result: Json) -> None:
    """Refuse a graph in float32 that answers more than one example in a hundred in another way; one may be a tie."""
    if "as_jax" in result and (1 - result["as_jax"]["fp32"]) * result["examples"] > max(1.5, result["examples"] / 100):
        raise ParityError(
            f"only {result['as_jax']['fp32']:.1%} of the answers of the graph in float32 are the JAX model's, so "
            f"nothing was written: please report this with the run's run.json"
        )


def _ranked(asked: Asked, exact: Side, run: Callable[[Precision], Side], reduce_range: bool) -> list[str]:
    """Return the encoder matrices, most harmful first: ranked by how much each, alone in int8, disturbs the logits."""
    names: dict[str, None] = {}

    def record(g: Graph, x: str, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> str:
        names[name.removesuffix(".query").removesuffix(".key_value")] = None
        return FP32.linear(g, x, name, kernel, bias)

    asked.target.build(asked.model, asked.params, Precision("fp32", record, FP32.lookup, FP32.project))
    rows = asked.rows[:SAMPLE]
    wanted = [exact(**row) for row in rows]
    harm = {}
    for name in names:
        alone = adjusted(INT8, set(names) - {name}, reduce_range)
        side = run(Precision("int8", alone.linear, FP32.lookup, FP32.project))
        errors = [np.square(side(**row) - want).mean() for row, want in zip(rows, wanted, strict=True)]
        harm[name] = float(np.mean(errors))
    return sorted(harm, key=harm.__getitem__, reverse=True)
