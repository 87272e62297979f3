"""Where the time of a step goes: a trace of some steps, and a table of it in words."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax

from jax_mlm.data.batches import Batch
from jax_mlm.files import make_folder, write_atomically
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.train.program import Program
from jax_mlm.train.step import TrainState

FOLDER, TABLE = "profile", "table.txt"
WARM = 3
"""Steps before the trace: the first ones are not like the others."""
PARTS = {
    "drawing masks and dropout": r"vmap\(",
    "embeddings": r"\.embed/",
    "vocabulary and loss": r"\.vocabulary/|/head(_norm)?/|jvp\(\)",
    "norms": r"norm/",
    "attention: its four matrices": r"/attention/(qkv|out)/",
    "attention: heads, positions, scores": r"/attention/",
    "feed-forward: its matrices": r"/mlp/(up|down)/",
    "feed-forward: activation": r"/mlp/",
    "residuals and the rest of the model": r"jvp\(",
    "optimizer": "",
}
"""What is said of an operation by the path that JAX gives it in the step; the first that is found counts."""
ELSEWHERE = "not found in the compiled step"
"""The row of operations that are not instructions of the step's program."""


@contextmanager
def profiled(program: Program, steps: int, run: Path, say: Callable[[str], None]) -> Iterator[Program]:
    """Give the program, which traces some of its next steps, and then writes and says where their time went.

    Of a run that ends before, it is the steps that there were.
    """
    tracer = _Tracer(program, steps, run / FOLDER, say)
    try:
        yield program._replace(step=tracer.step)
    finally:
        tracer.end()


@dataclass
class _Tracer:
    program: Program
    steps: int
    folder: Path
    say: Callable[[str], None]
    done: int = 0
    began: float = 0.0
    ended: bool = False
    last: tuple[int, int] = (0, 0)
    """The steps done before the last one that was taken, and the horizon then."""

    def step(
        self, state: TrainState, batch: Batch, done: int, horizon: int, limit: float, order: int
    ) -> tuple[TrainState, Metrics]:
        if self.done == WARM:
            jax.block_until_ready(state)
            make_folder(self.folder, "--profile")
            jax.profiler.start_trace(str(self.folder))
            self.began = time.perf_counter()
        self.last = done, horizon
        result = self.program.step(state, batch, done, horizon, limit, order)
        self.done += 1
        if self.done == WARM + self.steps:
            jax.block_until_ready(result)
            self.end()
        return result

    def end(self) -> None:
        """End the trace if one has begun, and write the table; say so if the run was too short for one."""
        traced = self.done - WARM
        if traced < 1:
            self.say(f"warning: --profile begins after {WARM} steps, and the run had {self.done}: nothing was traced")
        elif not self.ended:
            seconds = (time.perf_counter() - self.began) / traced
            jax.profiler.stop_trace()
            text = described(self.folder, self.program.hlo(*self.last), seconds)
            write_atomically(self.folder / TABLE, text)
            self.say(text)
        self.ended = True


def described(folder: Path, hlo: str, seconds: float) -> str:
    """Return the table: each part's share of the time of all operations, and what it makes of a step's time."""
    spent = dict.fromkeys((*PARTS, ELSEWHERE), 0.0)
    names = named(hlo)
    for name, duration in operations(folder):
        path = names.get(name)
        found = (part for part, pattern in PARTS.items() if path is not None and re.search(pattern, path))
        spent[next(found, ELSEWHERE)] += duration
    total = sum(spent.values()) or 1.0
    lines = [f"a step takes {1e3 * seconds:,.1f} ms; of the time of its operations:"]
    lines += [
        f"  {part:<38} {duration / total:6.1%}  {1e3 * seconds * duration / total:8.1f} ms"
        for part, duration in sorted(spent.items(), key=lambda item: -item[1])
        if duration
    ]
    return "\n".join([*lines, f"the trace is in {folder} (TensorBoard or Perfetto show it)"]) + "\n"


def named(hlo: str) -> dict[str, str]:
    """Return the path that JAX gave to each instruction of a compiled program; of a fusion, that of its last part."""
    bodies = {found[1]: found[2] for found in re.finditer(r"^%(\S+) \(.*?\{\n(.*?)^\}", hlo, re.M | re.S)}
    paths: dict[str, str] = {}
    for name, rest in re.findall(r"^\s*(?:ROOT )?%(\S+) = (.*)$", hlo, re.M):
        path = re.search(r'op_name="([^"]*)"', rest)
        called = re.search(r"calls=%([^\s,]+)", rest)
        inside = re.findall(r'op_name="([^"]*)"', bodies.get(called[1], "")) if called and path is None else []
        paths.setdefault(name, path[1] if path else inside[-1] if inside else "")
    return paths


def operations(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield the instruction and the nanoseconds of each operation in the newest trace of a folder.

    On a GPU the event itself is named after the kernel that computes the instruction.
    """
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of the bindings themselves
        planes = list(jax.profiler.ProfileData.from_file(str(newest)).planes)
        devices = [plane for plane in planes if plane.name.startswith("/device:")]
        for plane in devices or planes:
            for line in plane.lines:
                for event in line.events:
                    instruction = dict(event.stats).get("hlo_op")
                    if instruction is not None:
                        yield str(instruction), event.duration_ns
