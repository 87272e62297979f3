"""Describe the machine that a result was measured on, and measure what it can do at best.

python benchmarks/common/machine.py THREADS      prints bytes and operations a second as JSON
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BYTES_READ = 1 << 29
"""More than any cache holds."""
SIZE = 2048
"""Rows, columns and inner axis of the product that stands for the best a processor does."""
REPEAT = 7


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else f"{os.cpu_count()} cores"


def shortened(text: str) -> str:
    """Without the folders of absolute paths: a record says nothing of where it was made."""
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)*([^\s/:'\"]+)", r"\1", text)


def command(argv: Sequence[str]) -> str:
    """The command line of a benchmark, as somebody else could type it."""
    return "python " + " ".join([f"benchmarks/{Path(argv[0]).name}", *(shortened(word) for word in argv[1:])])


# ---- the best there is ---------------------------------------------------------------------------


def best(threads: int) -> dict[str, float]:
    """Bytes read a second from memory, and operations (multiplications, additions) a second, by that many threads."""
    return {
        "bytes_per_second": _bandwidth(threads),
        "int8_operations_per_second": _operations(threads, "int8"),
        "fp32_operations_per_second": _operations(threads, "fp32"),
    }


def _seconds(run: Callable[[], Any]) -> float:
    """The fastest of several runs: what the machine can do when nothing disturbs it."""
    run()
    found = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


def _bandwidth(threads: int) -> float:
    import numpy as np

    parts = np.array_split(np.ones(BYTES_READ // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return BYTES_READ / _seconds(lambda: list(pool.map(lambda part: float(part @ part), parts)))


def _operations(threads: int, dtype: str) -> float:
    """Of a large matrix product by onnxruntime."""
    import numpy as np
    import onnxruntime as ort
    from mlm_onnx.convert.onnx_file import Graph

    rng, g = np.random.default_rng(0), Graph("product")
    if dtype == "int8":
        left = rng.integers(0, 256, (SIZE, SIZE)).astype(np.uint8)
        right, kind, result = rng.integers(-127, 128, (SIZE, SIZE)).astype(np.int8), "MatMulInteger", np.int32
    else:
        left, right = (rng.normal(size=(SIZE, SIZE)).astype(np.float32) for _ in range(2))
        kind, result = "MatMul", np.float32
    x = g.input("x", left.dtype, (SIZE, SIZE))
    g.output("y", g.op(kind, x, g.weight("w", right)), result, (SIZE, SIZE))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(g.model().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return 2 * SIZE**3 / _seconds(lambda: session.run(None, {"x": left}))


def floor_ms(config: Any, tokens: int, dtype: str, weight_bytes: int, machine: dict[str, float]) -> dict[str, float]:
    """The least time of one text with one mask: all weights are read once, and the products are done at the peak.

    Args:
        config: the model's, as `jax_mlm.config.ModelConfig`.
    """
    D, F, E = config.width, config.ff_width * (3 if config.gated else 2), config.embedding_width or config.width
    matrices = (config.layers - 1) * tokens * (4 * D * D + F * D) + tokens * 2 * D * D + 2 * D * D + F * D
    matrices += D * E + config.vocab_size * E
    attention = 2 * D * tokens * ((config.layers - 1) * tokens + 1)  # in float32 whatever the weights are
    peak, exact = machine[f"{dtype}_operations_per_second"], machine["fp32_operations_per_second"]
    reading = weight_bytes / machine["bytes_per_second"] * 1e3
    computing = (2 * matrices / peak + 2 * attention / exact) * 1e3
    return {"reading": reading, "computing": computing, "floor": max(reading, computing)}


if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
    print(json.dumps(best(int(sys.argv[1]))))
