"""Describe the machine that a result was measured on, and measure what it can do at best.

python benchmarks/common/machine.py THREADS      prints bytes and operations per second as JSON
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BYTES_READ = 1 << 29
"""Larger than any cache."""
SIZE = 2048
"""Rows, columns and inner axis of the matrix product that measures a processor's peak."""
REPEAT = 7


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else f"{os.cpu_count()} cores"


def gpu() -> dict[str, str]:
    """Return the driver, clocks, power and temperature of the first GPU in sight; nothing without nvidia-smi."""
    asked = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
    line = ["nvidia-smi", "--id", os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]]
    try:
        done = subprocess.run(
            [*line, f"--query-gpu={asked}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(zip(asked.split(","), done.stdout.strip().split(", "), strict=False)) if done.returncode == 0 else {}


def installed(*starts: str) -> dict[str, str]:
    """Return the versions of installed distributions whose names begin so."""
    from importlib.metadata import distributions

    versions = {each.name: each.version for each in distributions() if each.name.startswith(starts)}
    return dict(sorted(versions.items()))


def shortened(text: str) -> str:
    """Remove the folders of absolute paths, so that a record does not reveal where it was made."""
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)*([^\s/:'\"]+)", r"\1", text)


def command(argv: Sequence[str]) -> str:
    """Return the command line of a benchmark as somebody else could type it."""
    return "python " + shlex.join([f"benchmarks/{Path(argv[0]).name}", *(shortened(word) for word in argv[1:])])


# ---- the best there is ---------------------------------------------------------------------------


def best(threads: int) -> dict[str, float]:
    """Measure bytes read from memory and operations (multiplications, additions) per second, with some threads."""
    return {
        "bytes_per_second": _bandwidth(threads),
        "int8_operations_per_second": _operations(threads, "int8"),
        "fp32_operations_per_second": _operations(threads, "fp32"),
    }


def _seconds(run: Callable[[], Any]) -> float:
    """Return the time of the fastest of several runs: what the machine can do undisturbed."""
    run()
    times = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def _bandwidth(threads: int) -> float:
    import numpy as np

    parts = np.array_split(np.ones(BYTES_READ // 4, np.float32), threads)
    with ThreadPoolExecutor(threads) as pool:
        return BYTES_READ / _seconds(lambda: list(pool.map(lambda part: float(part @ part), parts)))


def _operations(threads: int, dtype: str) -> float:
    """Return the operations per second of a large matrix product in onnxruntime."""
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
    """Return the least time for one text with one mask: all weights read once, and all products computed at peak rate.

    Args:
        config: a `jax_mlm.config.ModelConfig`.
    """
    D, F, E = config.width, config.ff_width * (3 if config.gated else 2), config.embedding_width or config.width
    matrices = (config.layers - 1) * tokens * (4 * D * D + F * D) + tokens * 2 * D * D + 2 * D * D + F * D
    matrices += D * E + config.vocab_size * E
    attention = 2 * D * tokens * ((config.layers - 1) * tokens + 1)  # always in float32, whatever the weights are
    peak, exact = machine[f"{dtype}_operations_per_second"], machine["fp32_operations_per_second"]
    reading = weight_bytes / machine["bytes_per_second"] * 1e3
    computing = (2 * matrices / peak + 2 * attention / exact) * 1e3
    return {"reading": reading, "computing": computing, "floor": max(reading, computing)}


if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
    print(json.dumps(best(int(sys.argv[1]))))
