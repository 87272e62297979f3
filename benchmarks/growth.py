"""Measure how the time and the memory of a training step grow, and those of preparing text, beside what theory says.

    python benchmarks/growth.py [--corpus TEXT] [--largest 1e9]
    python benchmarks/growth.py --plot

One thing is varied at a time, from a step of 8 rows × 256 tokens through 4 layers of 256 with a vocabulary of 8,192. In
theory time grows as the operations that `jax_mlm/cost/flops.py` counts. Memory grows at most as the state, which is
counted, and temporaries in proportion to what is varied (to its square along the length: pairs of tokens). `--corpus`
is repeated up to each size, and prepared by one process for each core. What stands in the JSON is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.arms import facts
from common.machine import command
from common.steps import lowered_steps

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "growth.json"
START: Mapping[str, int] = {"length": 256, "batch": 8, "width": 256, "vocabulary": 8192, "devices": 1}
AXES: Mapping[str, tuple[int, ...]] = {
    "length": (128, 256, 512, 1024, 2048, 4096),
    "batch": (4, 8, 16, 32, 64),
    "width": (128, 256, 512, 1024),
    "vocabulary": (2048, 8192, 32_768, 131_072),
    "devices": (1, 2, 4, 8, 16),
}
CORPUS = (10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000)
"""Bytes of text."""
POWER: Mapping[str, int] = {"length": 2, "batch": 1, "width": 1, "vocabulary": 1, "devices": 0}
"""How temporaries grow at most."""
STEPS = 5


def step_of(point: Mapping[str, int]) -> dict[str, float]:
    """Compile and time a step in this process, whose number of devices is given."""
    import jax
    import numpy as np

    from jax_mlm.config import DataConfig, ModelConfig, TrainConfig
    from jax_mlm.data.batches import Batch
    from jax_mlm.parallel.compile import compile_step, resolved
    from jax_mlm.parallel.mesh import Layout, mesh_over
    from jax_mlm.plan import step_flops
    from jax_mlm.train.ahead import lowered_step

    width, length, rows = point["width"], point["length"], point["batch"] * point["devices"]
    size = {"width": width, "heads": width // 64, "ff_width": 4 * width, "vocab_size": point["vocabulary"]}
    model = ModelConfig(layers=4, max_length=max(length, 512), **size)
    train = resolved(TrainConfig(model=model, batch=rows, accumulate=1, corpus=DataConfig(length=length)))
    mesh = mesh_over(jax.devices(), Layout(fsdp=point["devices"]))
    lowered = lowered_step(train, mesh)
    compiled = compile_step(lowered)
    found = compiled.memory_analysis()
    assert found is not None
    row: dict[str, Any] = {
        "flops": step_flops(train),
        "state_bytes": found.argument_size_in_bytes,
        "step_bytes": found.temp_size_in_bytes,
        "dtype": train.dtype,
    }
    if point["devices"] > 1:  # they share the cores: their time says nothing
        return row
    tokens = np.random.default_rng(0).integers(5, point["vocabulary"], (rows, length), np.int32)
    at = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    batch = Batch(tokens, np.ones_like(tokens), at, at, np.arange(rows, dtype=np.int32))
    take = lowered_steps(lowered, compiled, batch, mesh)
    seconds = [take() for _ in range(STEPS + 1)]
    return {**row, "seconds": statistics.median(seconds[1:])}


PREPARE = """
import sys, time
from pathlib import Path
from jax_mlm.config import DataConfig
from jax_mlm.data.prepare import prepare
from jax_mlm.data.tokenizer import load_tokenizer, vocabulary_of
tokenizer = load_tokenizer(sys.argv[2])
began = time.perf_counter()
config, cache = DataConfig(document="line"), Path(sys.argv[3])
files = prepare([Path(sys.argv[1])], tokenizer, vocabulary_of(tokenizer), config, cache)
print(time.perf_counter() - began, len(files.tokens))
"""


def preparation_of(size: int, corpus: Path, folder: Path) -> dict[str, float]:
    """Prepare this many bytes of text, numbered so that no part of it is another's copy."""
    from jax_mlm.data.tokenizer import train_tokenizer

    text, copy, tokenizer = corpus.read_text(), 0, folder / "tokenizer.json"
    if not tokenizer.exists():
        train_tokenizer(text.splitlines(), "wordpiece", START["vocabulary"]).save(str(tokenizer))
    path = folder / f"{size}.txt"
    with path.open("w") as file:
        while file.tell() < size:
            file.write(text.replace("the", f"the{copy}"))
            copy += 1
    line = [sys.executable, "-c", PREPARE, str(path), str(tokenizer), str(folder / f"cache-{size}")]
    process, peak = subprocess.Popen(line, stdout=subprocess.PIPE, text=True), 0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.2)
    assert process.stdout is not None
    seconds, tokens = process.stdout.read().split()
    found = {"bytes": path.stat().st_size, "seconds": float(seconds), "tokens": int(tokens), "resident_bytes": peak}
    path.unlink()
    return found


def _resident(pid: int) -> int:
    """Return the resident memory of a process and its workers, in bytes; pages that they share count for each."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:  # it has ended
            continue
        if pid in (int(facts["Pid"]), int(facts["PPid"])):
            total += int(facts.get("VmRSS", "0 kB").split()[0]) * 1024
    return total


def points() -> Iterator[tuple[str, dict[str, int]]]:
    """Yield each axis with the steps along it."""
    for axis, values in AXES.items():
        for value in values:
            yield axis, {**START, axis: value}


def measured_apart(point: Mapping[str, int]) -> dict[str, float]:
    """Measure a step in a process of its own, which has as many devices as it asks for."""
    devices = f"--xla_force_host_platform_device_count={point['devices']}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}"}
    line = [sys.executable, __file__, "--point", json.dumps(point)]
    done = subprocess.run(line, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the measurements beside theory: each as a multiple of the first of its axis."""
    lines = [
        "| varied | | time | times as long | theory | memory of a device, state + step | times as much | at most |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for axis in AXES:
        along = [row for row in rows if row["axis"] == axis]
        for row in along:
            first, value = along[0], row[axis]
            memory = row["state_bytes"] + row["step_bytes"]
            before = first["state_bytes"] + first["step_bytes"]
            grown = first["step_bytes"] * (value / first[axis]) ** POWER[axis]
            expected = (row["state_bytes"] + grown) / before
            timed = ["", "", ""]
            if "seconds" in row:
                times, theory = row["seconds"] / first["seconds"], row["flops"] / first["flops"]
                timed = [f"{1e3 * row['seconds']:,.0f} ms", f"{times:.2f}", f"{theory:.2f}"]
            held = f"{row['state_bytes'] / 1e6:,.0f} + {row['step_bytes'] / 1e6:,.0f} MB"
            lines.append(
                f"| {axis} | {value:,} | {' | '.join(timed)} | {held} | {memory / before:.2f} | {expected:.2f} |"
            )
    for row in (row for row in rows if row["axis"] == "corpus"):
        rate = row["bytes"] / 1e6 / row["seconds"]
        held = f"{row['resident_bytes'] / 1e6:,.0f} MB"
        lines.append(
            f"| corpus | {row['bytes'] / 1e6:,.0f} MB | {row['seconds']:,.1f} s | {rate:.1f} MB/s | | {held} | | |"
        )
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw time and memory along each axis, and the theory of time as a dashed line through the first point."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [*AXES, "corpus"]
    figure, axes = plt.subplots(2, len(names), figsize=(3 * len(names), 5.5), layout="constrained")
    for column, name in enumerate(names):
        along = [row for row in rows if row["axis"] == name]
        timed = [row for row in along if "seconds" in row]
        at = [row["bytes" if name == "corpus" else name] for row in timed]
        theory = [row["bytes" if name == "corpus" else "flops"] for row in timed]
        upper, lower = axes[0][column], axes[1][column]
        if name != "devices":
            upper.loglog(at, [row["seconds"] for row in timed], "o-", label="measured")
            upper.loglog(
                at, [timed[0]["seconds"] * each / theory[0] for each in theory], "--", color="0.5", label="theory"
            )
            upper.set(title=name, ylabel="seconds" if not column else None)
        else:
            upper.axis("off")
        at = [row["bytes" if name == "corpus" else name] for row in along]
        parts = ("resident_bytes",) if name == "corpus" else ("state_bytes", "step_bytes")
        for part in parts:
            lower.loglog(at, [row[part] / 1e6 for row in along], "o-", label=part.split("_")[0])
        for axis in (upper, lower):
            axis.set_xticks(at, [f"{value / 1e6:,.0f} MB" if name == "corpus" else f"{value:,}" for value in at])
            axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            axis.tick_params(axis="x", labelsize=7, labelrotation=30)
        if name == "corpus":
            lower.set_ylim(10, 2000)
        lower.set(xlabel=name, ylabel="MB a device" if not column else None)
        lower.legend(fontsize=8)
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a text file; without it, preparation is not measured")
    parser.add_argument("--largest", type=float, default=1e9, help="bytes of the largest corpus")
    parser.add_argument("--plot", action="store_true", help="draw what stands in the JSON, and measure nothing")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        print(json.dumps(step_of(json.loads(given.point))))
        return
    kept = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": []}
    rows: list[dict[str, Any]] = kept["rows"]

    def keep(row: dict[str, Any]) -> None:
        rows.append({**row, **facts()})
        RESULT.write_text(json.dumps({"command": command(sys.argv), "rows": rows}, indent=1) + "\n")
        print(row, file=sys.stderr, flush=True)

    known = {(row["axis"], row.get(row["axis"])) for row in rows}
    for axis, point in points() if not given.plot else ():
        if (axis, point[axis]) not in known:
            keep({"axis": axis, **point, **measured_apart(point)})
    if given.corpus and not given.plot:
        with tempfile.TemporaryDirectory() as folder:
            for size in CORPUS:
                if size <= given.largest and ("corpus", size) not in known:
                    keep({"axis": "corpus", "corpus": size, **preparation_of(size, given.corpus, Path(folder))})
    plot(rows, RESULT.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
