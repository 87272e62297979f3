"""Time our training step on the CPU under XLA's options, in turns, in one process; print each beside none.

    python benchmarks/cpu_options.py

The options of a run are in `jax_mlm.parallel.compile`, by JAX's version. Results of another version, shape or type in
the file are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
from common.arms import facts
from common.machine import command
from common.steps import SHAPES, Shape, Step, our_step

RESULTS = Path(__file__).parent / "results" / "cpu-options.json"
SETS: dict[str, dict[str, str | bool]] = {
    "none": {},
    "vectors of 512 bits": {"xla_cpu_prefer_vector_width": "512"},
    "no YNN": {"xla_cpu_experimental_ynn_fusion_type": ""},
    "no YNN, vectors of 512 bits": {
        "xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_prefer_vector_width": "512"
    },
    "no XNNPACK": {"xla_cpu_use_xnnpack": False},
    "oneDNN": {"xla_cpu_use_onednn": True},
    "preset FAST_RUNTIME": {"xla_cpu_opt_preset": "CPU_OPT_PRESET_FAST_RUNTIME"},
    "fast minimum and maximum off": {"xla_cpu_enable_fast_min_max": False},
}  # fmt: skip
"""Options that some version of JAX knows; those that this one does not know are left out."""


def steps_of(shape: Shape, dtype: str) -> dict[str, Step]:
    """Compile the step once for each set of options that this JAX knows."""
    found = {}
    for name, chosen in SETS.items():
        try:
            found[name], _ = our_step(shape, dtype, options=chosen)
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            print(f"{name}: not an option of JAX {jax.__version__}")
    return found


def measure(shape: Shape, dtype: str, turns: int) -> dict[str, Any]:
    """Take one step of each in turn; return milliseconds a step, and how many times as fast as without options."""
    steps = steps_of(shape, dtype)
    for once in steps.values():
        float(once())
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, once in steps.items():
            began = time.perf_counter()
            float(once())
            seconds[name].append(time.perf_counter() - began)
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(taken),
            "times_as_fast": statistics.median(a / b for a, b in zip(seconds["none"], taken, strict=True)),
        }
        for name, taken in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["4x256"])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    body = {"results": json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else {}}
    for shape in options.shape:
        for dtype in options.dtype:
            found = measure(SHAPES[shape], dtype, options.turns)
            print(f"JAX {jax.__version__}, {shape}, {dtype}")
            for name, row in found.items():
                print(f"    {name:32}{row['milliseconds']:9.1f} ms {row['times_as_fast']:6.2f}")
            body["results"].setdefault(jax.__version__, {}).setdefault(shape, {})[dtype] = {**facts(), "sets": found}
            RESULTS.write_text(json.dumps({"command": command(sys.argv), **body}, indent=1) + "\n")


if __name__ == "__main__":
    main()
