"""Time our training step and that of the Hugging Face model of the same shape in PyTorch, in turns; print the ratios.

    python benchmarks/training.py --peer-python ../reference/bin/python

Both sides take the same shape, batch, length, share of masked tokens, optimizer (AdamW, clipped), no dropout and number
of threads, and huge pages; they take short turns, so that a drift of the machine affects both. The peer is
`ModernBertForMaskedLM` with PyTorch's own attention and with its head at the masked positions only: in float32 as it
is, and in bfloat16 (autocast) compiled with `torch.compile`, which needs a C++ compiler. It needs the extra `reference`
in the venv that `--peer-python` names, which may be another Python than ours; without it, only our side is timed.

Each side is also compared with the best rate of matrix products that either side reaches in its type: of that rate, the
products of the step alone use the share that is printed.

    python benchmarks/training.py --gpu --peer-python ../reference/bin/python

With --gpu, the presets base and large and the peer of their shapes, with and without `torch.compile`, are timed in
bfloat16 on the first GPU, row by row in the order of their worth: full rows, isolated documents, windows, other
lengths, and our losses in two types. Without --peer-python, the peer is timed by this Python if it has torch and
transformers. A row has a process of its own, its attention is chosen as a run with such rows would choose it, and its
steps are waited for at the end only. The rows of a card that the file has already are left out, and none begins after
--minutes, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import gpu_rows
from common.arms import facts, has
from common.machine import command
from common.sides import Side, serve
from common.steps import MASKED, MATRIX, SHAPES, Shape, Step, model_of, our_product, our_step, torch_product, torch_step

RESULTS = Path(__file__).parent / "results"
TYPES = ("float32", "bfloat16")
Which = tuple[str, str]
"""A side and its type."""


class Turns(NamedTuple):
    """What a side was measured at."""

    flops: float
    """Its best rate of matrix products, in operations a second."""
    seconds: list[list[float]]
    """Those of each step, turn by turn."""


def work(side: str, shape: Shape, dtype: str, threads: int) -> None:
    """Measure a side's best rate of products, and take its steps when asked."""
    if side == "ours":
        once, product = our_step(shape, dtype)[0], our_product(dtype)
    else:
        import torch

        torch.set_num_threads(threads)
        once, product = torch_step(shape, dtype, compiled=dtype == "bfloat16"), torch_product(dtype)
    for _ in range(3):
        float(once())
        float(product())
    best = min(_seconds(product) for _ in range(7))
    serve({"flops": 2 * MATRIX**3 / best}, lambda: _seconds(once))


def _seconds(step: Step) -> float:
    began = time.perf_counter()
    float(step())
    return time.perf_counter() - began


def turns_of(name: str, threads: int, turns: int, steps: int, pythons: Mapping[str, str]) -> dict[Which, Turns]:
    """Let every side take `turns` times `steps` steps of a shape, one side after the other."""
    cores, env = sorted(os.sched_getaffinity(0))[:threads], {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    sides, took = dict[Which, Side](), dict[Which, Turns]()
    with ExitStack() as stack:
        for side, dtype in itertools.product(pythons, TYPES):
            line = [pythons[side], __file__, "--work", side, dtype, "--shape", name, "--threads", str(threads)]
            started = stack.enter_context(Side(line, cores, **env))
            sides[side, dtype] = started
            took[side, dtype] = Turns(started.ready()["flops"], [])  # nothing else runs meanwhile
        for _ in range(turns):
            for which, side in sides.items():
                took[which].seconds.append(side.take(steps))
    return took


def measure(name: str, threads: int, turns: int, steps: int, peer_python: str | None) -> dict[str, Any]:
    """Let both sides take turns; ratios are medians over the pairs of turns."""
    from jax_mlm.cost.flops import train_flops

    pythons = {"ours": sys.executable, **({"torch": peer_python} if peer_python else {})}
    sides = turns_of(name, threads, turns, steps, pythons)
    s = SHAPES[name]
    count = s.batch * s.length
    counts = count, s.layers * count * s.length, s.batch * np.ceil(MASKED * s.length)
    flops = {"ours": train_flops(model_of(s), *counts), "torch": train_flops(model_of(s), *counts, count)}
    rates = {dtype: max(side.flops for (_, of), side in sides.items() if of == dtype) for dtype in TYPES}
    rows = []
    for (side, dtype), own in sides.items():
        median = statistics.median(itertools.chain(*own.seconds))
        theirs = sides.get(("torch", dtype))
        pairs = zip(theirs.seconds, own.seconds, strict=True) if theirs and side == "ours" else ()
        ratios = [statistics.median(a) / statistics.median(b) for a, b in pairs]
        rows.append(
            {
                "side": side + (", compiled" if (side, dtype) == ("torch", "bfloat16") else ""),
                "dtype": dtype,
                "milliseconds": 1e3 * median,
                "tokens_per_second": count / median,
                "share_of_matrix_rate": flops[side] / median / rates[dtype],
                "times_as_fast_as_torch": statistics.median(ratios) if ratios else None,
            }
        )
    return {"shape": name, **asdict(s), "threads": threads, "matrix_flops_per_second": rates, "sides": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps per turn")
    parser.add_argument("--peer-python", help="a Python with the extra 'reference' (torch and transformers 5)")
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU that is here; takes the next options")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no row on the GPU after so many")
    parser.add_argument("--out", type=Path, help="the results (default: training-cpu.json or training-gpu.json)")
    parser.add_argument("--dry", action="store_true", help=argparse.SUPPRESS)  # tiny shapes, on the CPU
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        gpu_rows.work(options.row)
        return
    if options.dry and not options.out:
        parser.error("--dry needs --out: its results are of no use")
    out = options.out or RESULTS / f"training-{'gpu' if options.gpu else 'cpu'}.json"
    if options.gpu:
        gpu_rows.run(out, options.minutes, options.peer_python, options.dry)
        return
    if options.work:
        side, dtype = options.work
        work(side, SHAPES[options.shape[0]], dtype, options.threads)
        return
    if options.peer_python and not has(options.peer_python, "torch, transformers"):
        parser.error(f"--peer-python {options.peer_python} has no torch and transformers: install the extra reference")
    from jax_mlm.version import package_version

    results = [measure(n, options.threads, options.turns, options.steps, options.peer_python) for n in options.shape]
    print(
        f"{'shape':8} {'side':16} {'type':10} {'ms/step':>9} {'tokens/s':>10} {'of products':>11} {'torch / ours':>12}"
    )
    for result in results:
        for row in result["sides"]:
            ratio = row["times_as_fast_as_torch"]
            print(
                f"{result['shape']:8} {row['side']:16} {row['dtype']:10} {row['milliseconds']:9.1f} "
                f"{row['tokens_per_second']:10,.0f} {row['share_of_matrix_rate']:11.0%} "
                f"{f'{ratio:.2f}' if ratio else '':>12}"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    body = {"command": command(sys.argv), **facts(), "jax": package_version("jax")}
    out.write_text(json.dumps({**body, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
