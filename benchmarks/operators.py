"""Measure where the time of a query goes: milliseconds per kind of operator in the int8 and the fp32 graph.

    python benchmarks/operators.py
    python benchmarks/operators.py --shape tiny

Uses onnxruntime's profiler, with one thread and with two. The figures include its overhead: read them as shares.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime as ort
from common.machine import command, processor
from common.random_models import SHAPES, shaped
from mlm_onnx.answer.session import as_written
from mlm_onnx.convert.precision import FP32
from mlm_onnx.convert.quantize import INT8
from mlm_onnx.convert.targets import fill_mask_graph

from jax_mlm.model.heads import init_params

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = {"short": 18, "long": 128}
WARM, RUNS = 5, 40


def milliseconds(graph: Path, tokens: int, vocab_size: int, threads: int) -> dict[str, float]:
    """Return operator → milliseconds per query, the mean of RUNS after WARM to warm up; "session" is the total."""
    options = as_written()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_profiling = True
    options.profile_file_prefix = str(graph.parent / "profile")
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(tokens).integers(5, vocab_size, (1, tokens))
    for _ in range(WARM + RUNS):
        session.run(None, {"input_ids": ids, "positions": np.array([[tokens // 2]])})
    events = json.loads(Path(session.end_profiling()).read_text())
    runs = [event for event in events if event.get("name") == "model_run"][WARM:]
    begun, total = runs[0]["ts"], Counter[str]()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= begun:
            total[event["args"]["op_name"]] += event["dur"]
    total["session"] = sum(event["dur"] for event in runs)
    return {name: microseconds / RUNS / 1e3 for name, microseconds in total.most_common()}


def table(results: dict[str, dict[str, float]]) -> str:
    lines = []
    for title, operators in results.items():
        total = operators["session"]
        lines.append(f"{title}: {total:.2f} ms")
        lines += [
            f"    {name:28}{ms:8.2f} ms  {ms / total:6.1%}"
            for name, ms in operators.items()
            if name != "session" and ms >= 0.01 * total
        ]
    return "\n".join(lines)


def measure(shape: str, folder: Path) -> dict[str, dict[str, float]]:
    config = shaped(shape)
    params = jax.device_get(init_params(config, jax.random.key(0)))
    results = {}
    for precision in (INT8, FP32):
        graph = folder / f"{precision.name}.onnx"
        fill_mask_graph(config, params, precision).write(graph)
        for kind, tokens in LENGTHS.items():
            for threads in (1, 2):
                title = f"{shape} {precision.name}, {kind} ({tokens} tokens), threads: {threads}"
                results[title] = milliseconds(graph, tokens, config.vocab_size, threads)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="bert-base")
    parser.add_argument("--out", type=Path, default=RESULTS / "operators.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = measure(options.shape, Path(name))
    print(table(results))
    body: dict[str, Any] = {"command": command(sys.argv), "processor": processor(), "milliseconds": results}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
