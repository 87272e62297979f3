"""Train, or answer, for a long time in one process, and check that nothing grows and nothing slows down.

    python benchmarks/soak.py train --steps 20000
    python benchmarks/soak.py predict --queries 1000000 --threads 8

The process is watched from outside the code that it runs. Between a quarter of the way and the end, resident memory may
grow by 1 % or 8 MB, and neither arrays, objects, file descriptors, threads nor files (but for the logs) may
accumulate; nothing is compiled; and in the last tenth the median processor time of a step, or of a query, is at most
1.05 of that in the second tenth. Exits with 1 if one of these bars does not hold. A soak cannot be resumed: it measures
one process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common.machine import command, processor

RESULTS = Path(__file__).resolve().parent / "results"
LOGS = ("metrics.jsonl", "samples.jsonl")
MODEL = [
    *("--preset", "tiny", "--width", "32", "--layers", "1", "--heads", "2", "--ff-width", "48", "--length", "32"),
    *("--batch", "4", "--eval-rows", "8", "--log-every", "10"),
]
SPREAD = 0.025
"""Memory at a mark is the median over this part of the run on each side: what a save takes comes and goes."""
BLOCKS_A_TURN, BLOCKS_A_SAVE = 0.25, 600
"""Python objects that may stay for each step or query, and for each save: tensorstore 0.1.86 leaks those that it counts
bytes with, which Orbax asks it to do (`tensorstore.experimental_collect_matching_metrics`)."""
FULL_PAGES = 200_000
"""Bytes up to which the plots and the page grow: until every curve has the most points that are drawn."""
ARRAYS = 40
"""JAX arrays that may be under way at one mark and not at the other: batches that are made ahead."""
SETTLE = 2.0
"""Seconds after which what was under way at a mark, a save or a drawing, has ended."""
ARENAS = "MALLOC_ARENA_MAX"
"""A training is watched with one arena: each save has new threads, and the arenas that glibc gives them take 30 MB
until they have all been used, after about 80 saves. What still grows is kept by somebody."""
TURNS = 400
"""Blocks into which a run is divided to be timed."""


class Meter:
    """Watches this process at each of a known number of turns; it keeps no more than what it is made with."""

    def __init__(self, turns: int, folder: Path | None = None) -> None:
        self.turns, self._folder, self._turn = turns, folder, 0
        self._every = max(turns // TURNS, 1)
        self._memory = np.zeros(turns // self._every + 1)
        self._cpu = np.zeros(turns // self._every + 2)
        self._steps = np.zeros(turns + 1) if folder else None
        self._compiled = Counter[str]()
        self.marks: dict[str, dict[str, float]] = {}

    def compiled(self, event: str) -> None:
        self._compiled[event] += 1

    def turn(self) -> None:
        """Take one step or query."""
        if self._steps is not None and self._turn <= self.turns:
            self._steps[self._turn] = time.process_time()
        if self._turn % self._every == 0:
            self._memory[self._turn // self._every] = resident()
            self._cpu[self._turn // self._every] = time.process_time()
        if self._turn in (self.turns // 4, self.turns):
            self.mark("end" if self._turn == self.turns else "quarter")
        self._turn += 1

    def mark(self, name: str) -> None:
        if self._folder:  # a run redraws once a minute at most: at both marks the page is that of the moment
            from jax_mlm.report.figures import draw

            draw(self._folder)
        time.sleep(SETTLE)
        gc.collect()
        self.marks[name] = {
            "blocks": sys.getallocatedblocks(),
            "arrays": len(sys.modules["jax"].live_arrays()) if "jax" in sys.modules else 0,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "compiled": sum(self._compiled.values()),
            **(files(self._folder) if self._folder else {}),
        }

    def seconds(self, first: float, last: float) -> float:
        """Return the median processor time of a turn between two parts of the run."""
        if self._steps is not None:
            taken = np.diff(self._steps)
        else:
            taken = np.diff(self._cpu[: self.turns // self._every + 1]) / self._every
        return float(np.median(taken[int(first * len(taken)) : int(last * len(taken))]))

    def megabytes(self, at: float) -> float:
        count = len(self._memory)
        low, high = int((at - SPREAD) * count), int((at + SPREAD) * count) + 1
        return statistics.median(self._memory[max(low, 0) : min(high, count)]) / 1e6

    def result(self) -> dict[str, Any]:
        second, last = self.seconds(0.1, 0.2), self.seconds(0.9, 1.0)
        memory = {f"{at:.0%}": round(self.megabytes(at), 2) for at in (0.05, 0.25, 0.5, 0.75, 1.0)}
        return {
            "turns": self.turns,
            "megabytes": memory,
            "marks": self.marks,
            "milliseconds_of_processor": {"second_tenth": 1e3 * second, "last_tenth": 1e3 * last},
            "slower": last / second,
        }


def resident() -> int:
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files(folder: Path) -> dict[str, int]:
    """Count the checkpoints, and the other files but for the logs."""
    steps = [path for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()]
    sizes = [
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.name not in LOGS and "checkpoints" not in path.parts
    ]
    return {"checkpoints": len(steps), "files": len(sizes), "bytes": sum(sizes)}


def broken(result: dict[str, Any]) -> list[str]:
    """Return which bars a result does not pass."""
    quarter, end = result["marks"]["quarter"], result["marks"]["end"]
    grown = {name: end[name] - quarter[name] for name in end}
    memory, allowed = result["megabytes"], BLOCKS_A_TURN * result["turns"] + BLOCKS_A_SAVE * result.get("saves", 0)
    allowed *= 0.75
    risen = memory["100%"] - memory["25%"]
    bars = {
        f"resident memory rose by {risen:.1f} MB": risen <= max(8.0, 0.01 * memory["25%"]),
        f"{grown['blocks']} objects stayed": grown["blocks"] <= allowed,
        f"{grown['arrays']} arrays stayed": grown["arrays"] <= ARRAYS,
        f"{grown['descriptors']} descriptors stayed open": grown["descriptors"] <= 2,
        f"{grown['threads']} threads stayed": grown["threads"] <= 2,
        f"{grown['compiled']} programs were compiled": grown["compiled"] == 0,
        f"a turn takes {result['slower']:.3f} of the time": result["slower"] <= 1.05,
    }
    if "bytes" in end:
        bars[f"{end['checkpoints']} checkpoints are kept"] = end["checkpoints"] <= 4
        bars[f"{grown['files']} files were added"] = grown["files"] == 0
        larger = max(1.1 * quarter["bytes"], FULL_PAGES)
        bars[f"files other than the logs grew by {grown['bytes']} bytes"] = end["bytes"] <= larger
    return [what for what, holds in bars.items() if not holds]


# ---- training ------------------------------------------------------------------------------------


def write_text(path: Path) -> Path:
    draw = random.Random(0)
    words = [a + b for a in ("ba", "de", "fi", "go", "lu", "mer") for b in ("no", "ti", "sa", "pel", "rund")]
    path.write_text("".join(" ".join(draw.choices(words, k=9)) + ".\n" for _ in range(2000)))
    return path


def train(steps: int, saves: int, folder: Path) -> dict[str, Any]:
    """Run the command, watched at each step; it validates and saves `saves` times, and logs every tenth step."""
    from jax import monitoring

    from jax_mlm.train import loop
    from jax_mlm.train.__main__ import main

    meter, compile_program, finish = Meter(steps, folder / "run"), loop.compile_program, loop.finish
    monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: meter.compiled(event) if "/compile/" in event else None
    )

    def watched(*arguments: Any) -> Any:
        made = compile_program(*arguments)

        def step(*given: Any) -> Any:
            meter.turn()
            return made.step(*given)

        return made._replace(step=step)

    def finished(*arguments: Any) -> Any:
        meter.turn()
        return finish(*arguments)

    loop.compile_program, loop.finish = watched, finished
    line = [*MODEL, "--data", str(write_text(folder / "text.txt")), "--out", str(folder / "run")]
    if main([*line, "--steps", str(steps), "--eval-every", str(max(steps // saves, 1))]):
        raise SystemExit("error: the training did not end well")
    return {"saves": saves, **meter.result()}


# ---- answering -----------------------------------------------------------------------------------


def write_small_bundle(folder: Path) -> Path:
    import jax
    from common.random_models import made_up_words, shaped
    from mlm_onnx.convert import Request, write_bundle

    from jax_mlm.model.heads import init_params

    model = shaped("tiny")
    params = jax.tree.map(np.asarray, init_params(model, jax.random.key(0)))
    origin = {"run": "soak", "preset": "", "step": 0, "versions": {}}
    write_bundle(folder / "bundle", model, params, made_up_words(model.vocab_size), Request(dtype="int8"), origin)
    return folder / "bundle"


def queries(seed: int) -> Iterator[Callable[[Any], object]]:
    """Yield questions of mixed kinds and shapes, without end."""
    draw = random.Random(seed)

    def text(masks: int) -> str:
        words = [f"w{draw.randrange(500)}" for _ in range(draw.randrange(masks, 48))]
        for _ in range(masks):
            words.insert(draw.randrange(len(words) + 1), "[MASK]")
        return " ".join(words)

    while True:
        kind, one, several = draw.random(), text(1), [text(draw.randint(1, 3)) for _ in range(draw.randint(2, 4))]
        words = [f"w{draw.randrange(500)}" for _ in range(3)]
        if kind < 0.7:
            yield lambda fill, one=one: fill(one, top_k=5)
        elif kind < 0.8:
            yield lambda fill, one=one, words=words: fill(one, targets=words)
        elif kind < 0.9:
            yield lambda fill, several=several: fill(several)
        elif kind < 0.95:
            yield lambda fill, one=one: fill.embed(one)
        else:
            yield lambda fill, words=words: fill.score(" ".join(words))


def predict(count: int, threads: int, folder: Path) -> dict[str, Any]:
    """Ask one predictor from several threads at once; a child process writes its bundle, so that JAX stays away."""
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool:
        bundle = pool.apply(write_small_bundle, (folder,))
    from mlm_onnx import FillMask

    fill, meter, lock = FillMask(bundle, threads=1), Meter(count), threading.Lock()

    def work(number: int) -> None:
        mine = count // threads + (number < count % threads)
        for _, ask in zip(range(mine), queries(number), strict=False):
            ask(fill)
            with lock:
                meter.turn()

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    meter.turn()
    return {"threads": threads, **meter.result()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "predict"))
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--saves", type=int, default=80, help="validations and saves of the training")
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=8, help="threads that ask the predictor")
    parser.add_argument("--out", type=Path, help="results file (default: benchmarks/results/soak-WHAT.json)")
    options = parser.parse_args()
    if options.what == "train" and ARENAS not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, ARENAS: "1"})
    began = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == "train":
            result = train(options.steps, options.saves, folder)
        else:
            result = predict(options.queries, options.threads, folder)
    found = broken(result)
    body = {"command": command(sys.argv), "processor": processor(), "seconds": round(time.time() - began, 1), **result}
    out = options.out or RESULTS / f"soak-{options.what}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**body, "broken": found}, indent=1) + "\n")
    print(json.dumps(result, indent=1), *(f"broken: {what}" for what in found), sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
