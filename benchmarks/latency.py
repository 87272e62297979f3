"""Measure how long an answer takes: our bundles, onnxruntime on optimum's export, optimum's and torch's pipelines.

    python benchmarks/latency.py --peer-python ../peers/bin/python
    python benchmarks/latency.py --shape small --turns 1 --peer-python ../peers/bin/python

All use the same weights (random, of the named shape, or --model), texts and number of threads. Each runs in its own
process, and they take short turns, so that a drift of the machine affects all alike. The peers need the extra `peers`
in the venv that `--peer-python` names; one that is not installed is left out, and the output reports it.
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common.machine import command, floor_ms, processor, shortened
from common.random_models import SHAPES, shaped, texts, write_hugging_face

if TYPE_CHECKING:
    from jax_mlm.config import ModelConfig

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FAST_DATA = "fast/fill_mask.onnx.data"
WORKER = Path(__file__).with_name("latency_peers.py")
SIDES = {
    "ours int8": ("ours", "int8"),
    "ours fp32": ("ours", "fp32"),
    "onnxruntime on optimum's export": ("onnxruntime", "export"),
    "optimum pipeline": ("optimum", "export"),
    "torch pipeline": ("torch", "hf"),
}
"""Name → (side of latency_peers.py, folder that it reads)."""
REFERENCE = "ours fp32"
"""The side whose first answers the others are compared with; if it is left out, the first side."""
LENGTHS = {"short": 18, "long": 128}
"""Name → tokens in a text, special tokens included."""
BATCHES = {1: 20, 8: 3, 32: 1}
"""Texts at once → repetitions in a turn."""


# ---- the same model for all sides ----------------------------------------------------------------


def prepare(
    folder: Path, shape: str, dtypes: Sequence[str], model: Path | None, peer_python: str | None
) -> tuple[ModelConfig, list[str]]:
    """Write a Hugging Face directory, our bundles and optimum's export.

    Returns:
        The model's configuration, and a list of what is missing and why.
    """
    from mlm_onnx.convert import Request, write_bundle

    from jax_mlm.hf.directory import read_hf

    hf = folder / "hf"
    if model is not None:
        hf.symlink_to(model.resolve())
    else:
        write_hugging_face(hf, shaped(shape))
    read = read_hf(hf)
    origin = {"run": "benchmark", "preset": shape, "step": 0, "versions": {}}
    for dtype in dtypes:
        write_bundle(folder / dtype, read.model, read.params, read.tokenizer, Request(dtype=dtype), origin)
    if peer_python is None:
        return read.model, ["peers: no --peer-python"]
    done = subprocess.run(
        [peer_python, str(WORKER), "export", str(hf), str(folder / "export")], capture_output=True, text=True
    )
    if done.returncode == 0:
        return read.model, []
    return read.model, [f"optimum's export: {shortened((done.stderr.splitlines() or ['?'])[-1])}"]


# ---- processes ----------------------------------------------------------------------------------


def launch(side: str, folder: Path, threads: int, python: str, first: str = "") -> subprocess.Popen[str]:
    """Start a process that answers lines on stdin; with `first`, one that answers this text and exits."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    paths = [] if side != "ours" else [str(ROOT / "export"), str(ROOT)]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, os.environ.get("PYTHONPATH")]))
    line = [str(WORKER), side, str(folder), str(threads), *([first] if first else [])]
    if first and side == "ours":
        line = ["-m", "mlm_onnx", "fill", str(folder), first, "--threads", str(threads)]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:threads])  # the child inherits it; setting it there takes a slow fork
    try:
        return subprocess.Popen(
            [python, *line],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE if first else None,
            text=True,
        )  # fmt: skip
    finally:
        os.sched_setaffinity(0, cores)


def machine(threads: int) -> dict[str, float]:
    """Return the machine's peak rates, measured in a process that has as many cores as the sides."""
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "export"), str(ROOT)])}
    line = [sys.executable, str(ROOT / "benchmarks" / "common" / "machine.py"), str(threads)]
    return json.loads(subprocess.run(line, env=env, capture_output=True, text=True, check=True).stdout)


def ask(process: subprocess.Popen[str], question: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def cold(side: str, folder: Path, threads: int, python: str, text: str) -> float:
    """Return the seconds from starting a process to its first answer; for ours, the first line of `mlm_onnx fill`."""
    began = time.perf_counter()
    process = launch(side, folder, threads, python, text)
    assert process.stdout is not None
    line = process.stdout.readline()
    while line and side != "ours" and not line.startswith("first"):
        line = process.stdout.readline()
    seconds = time.perf_counter() - began
    process.communicate()
    if not line:
        raise SystemExit(f"error: {side} gave no first answer")
    return seconds


# ---- measuring ----------------------------------------------------------------------------------


def measure(shape: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="latency-", dir=options.scratch) as name:
        folder = Path(name)
        compileall.compile_dir(ROOT / "export" / "mlm_onnx", quiet=1)  # as pip does on installation
        config, left_out = prepare(folder, shape, options.dtype, options.model, options.peer_python)
        best = machine(options.threads)
        work = {
            (kind, batch): texts(folder / "hf" / "tokenizer.json", tokens, batch)
            for kind, tokens in LENGTHS.items()
            for batch in BATCHES
        }
        running, pythons = {}, {}
        for title, (side, files) in SIDES.items():
            pythons[title] = sys.executable if side == "ours" else options.peer_python
            if pythons[title] is None or not (folder / files).exists():
                continue
            process = launch(side, folder / files, options.threads, pythons[title])
            assert process.stdout is not None
            if process.stdout.readline().strip() == "ready":
                running[title] = process
            else:
                process.wait()
                left_out.append(f"{title}: it does not start")
        seconds: dict[Any, list[float]] = {}
        tops: dict[Any, list[int]] = {}
        starts: dict[str, list[float]] = {title: [] for title in running}
        for turn in range(-1, options.turns):  # turn -1 warms up
            for title, process in running.items():
                for key, batch in work.items():
                    repeat = 2 if turn < 0 else BATCHES[key[1]]
                    answer = ask(process, {"texts": batch, "repeat": repeat})
                    tops[title, key] = answer["tops"]
                    if turn >= 0:
                        seconds.setdefault((title, key), []).extend(answer["seconds"])
            for title in running:
                side, files = SIDES[title]
                once = cold(side, folder / files, options.threads, pythons[title], work["short", 1][0])
                if turn >= 0 or options.turns == 1:
                    starts[title].append(once)
        rows: dict[str, Any] = {}
        reference = REFERENCE if REFERENCE in running else next(iter(running))
        for title, process in running.items():
            about = ask(process, {})
            process.stdin.close()  # type: ignore[union-attr]
            process.wait()
            side, files = SIDES[title]
            artifact = sum(f.stat().st_size for f in (folder / files).rglob("*") if f.is_file())
            rows[title] = {
                "latency_ms": {kind: percentiles(seconds[title, (kind, 1)]) for kind in LENGTHS},
                "texts_per_second": {
                    kind: {str(b): b / statistics.median(seconds[title, (kind, b)]) for b in BATCHES}
                    for kind in LENGTHS
                },
                "cold_start_s": statistics.median(starts[title]),
                "resident_bytes": about["memory"],
                "artifact_bytes": artifact,
                "installed_bytes": about["installed"]["bytes"],
                "versions": about["installed"]["versions"],
                "same_first_answer": agreement(tops, title, reference, work),
            }
            if side == "ours":
                weights = (folder / files / FAST_DATA).stat().st_size
                rows[title]["floor_ms"] = {
                    kind: floor_ms(config, tokens, files, weights, best) for kind, tokens in LENGTHS.items()
                }
    head = {"shape": shape, "tokens": LENGTHS, "threads": options.threads, "machine": best}
    return {**head, "sides": rows, "left_out": left_out}


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(seconds, p)) * 1e3 for p in (50, 90, 99)}


def agreement(tops: dict[Any, list[int]], title: str, reference: str, work: dict[Any, list[str]]) -> float:
    pairs = [pair for key in work for pair in zip(tops[title, key], tops[reference, key], strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


# ---- showing ------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['shape']}, {result['threads']} threads; milliseconds p50/p90/p99, texts per second at 1/8/32"]
    heads = ("18 tokens", "128 tokens", "18: texts/s", "128: texts/s", "cold s", "MB now", "MB file", "MB inst", "same")
    widths = (20, 20, 18, 18, 7, 7, 8, 8, 6)
    lines.append(f"{'':32}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
    for title, row in result["sides"].items():
        cells = ["/".join(f"{ms:.1f}" for ms in row["latency_ms"][kind].values()) for kind in LENGTHS]
        cells += ["/".join(f"{rate:.0f}" for rate in row["texts_per_second"][kind].values()) for kind in LENGTHS]
        cells += [f"{row['cold_start_s']:.2f}", f"{row['resident_bytes']['now'] / 1e6:.0f}"]
        cells += [f"{row[key] / 1e6:.0f}" for key in ("artifact_bytes", "installed_bytes")]
        cells += [f"{row['same_first_answer']:.0%}"]
        lines.append(f"{title:32}" + "".join(f"{c:>{width}}" for c, width in zip(cells, widths, strict=True)))
    ours = [title for title in result["sides"] if title.startswith("ours")]
    for title, row in result["sides"].items():
        for base in ours if title not in ours else ():
            mine = result["sides"][base]
            short, long = (row["latency_ms"][k]["p50"] / mine["latency_ms"][k]["p50"] for k in LENGTHS)
            start = row["cold_start_s"] / mine["cold_start_s"]
            lines.append(f"{title} / {base}: {short:.1f}× short, {long:.1f}× long, {start:.1f}× cold start")
    best = result["machine"]
    lines.append(
        f"peak rates of this machine: {best['bytes_per_second'] / 1e9:.0f} GB/s from memory, "
        f"{best['int8_operations_per_second'] / 1e9:.0f} Gop/s in int8, "
        f"{best['fp32_operations_per_second'] / 1e9:.0f} in float32"
    )
    for title in ours:
        for kind, floor in result["sides"][title]["floor_ms"].items():
            took = result["sides"][title]["latency_ms"][kind]["p50"]
            lines.append(
                f"{title}, {kind}: {took:.1f} ms is {took / floor['floor']:.1f}× the floor of {floor['floor']:.1f} ms "
                f"(weights read {floor['reading']:.1f} ms, products {floor['computing']:.1f} ms)"
            )
    return "\n".join([*lines, *(f"left out: {line}" for line in result["left_out"])])


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Draw bars of the median, with a tick at the 90th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (11, 2.6 * len(results))
    figure, axes = plt.subplots(
        len(results), len(LENGTHS), figsize=size, squeeze=False, sharey="row", layout="constrained"
    )
    for line, result in zip(axes, results, strict=True):
        for axis, (kind, tokens) in zip(line, LENGTHS.items(), strict=True):
            names = list(result["sides"])[::-1]
            times = [result["sides"][name]["latency_ms"][kind] for name in names]
            colours = ["tab:blue" if name.startswith("ours") else "0.7" for name in names]
            axis.barh(names, [ms["p50"] for ms in times], color=colours)
            axis.scatter([ms["p90"] for ms in times], names, marker="|", color="black")
            for name, ms in zip(names, times, strict=True):
                axis.text(max(ms["p50"], ms["p90"]), name, f"  {ms['p50']:.1f}", va="center", fontsize=8)
            axis.set(title=f"{result['shape']}, {tokens} tokens", xlabel="ms for one text (median; | p90)")
            axis.set_xlim(0, 1.2 * max(ms["p90"] for ms in times))
            axis.tick_params(length=0, axis="y")
            axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["bert-base", "small"])
    parser.add_argument(
        "--dtype", nargs="+", choices=("int8", "fp32"), default=["int8", "fp32"], help="dtypes of our bundles"
    )
    parser.add_argument("--model", type=Path, help="a Hugging Face directory instead of random weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peer-python", help="a Python with the extra 'peers' (optimum-onnx, onnxruntime, torch)")
    parser.add_argument("--scratch", type=Path, help="where models are written while it runs (default: /tmp)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "latency.json", help="results file; the plot is written beside it"
    )
    options = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the plot needs matplotlib: pip install -e '.[bench]'")
    results = []
    for shape in options.shape[:1] if options.model else options.shape:
        results.append(measure(shape, options))
        print(table(results[-1]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    body = {"command": command(sys.argv), "processor": processor(), "turns": options.turns}
    options.out.write_text(json.dumps({**body, "results": results}, indent=1) + "\n")
    plot(results, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
