"""Training steps on a GPU, as rows of a table: each is measured by a process of its own, and kept at once."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from common.machine import command, gpu, installed, shortened
from common.steps import MASKED, Layout, Shape, Step, batch_of, model_of, our_step, torch_step

TOKENS = 1 << 16
"""Tokens of a step, padding among them, where they fit: else half as many, and so on."""
SECONDS = 3.0
"""Time that the steps of a row take together."""
FEWEST = 3
"""Fewest steps that are timed, and steps before them."""
EQUAL_STEPS = 20
"""Steps whose losses are compared between types."""
LONGEST = 240.0
"""Seconds that a row may take."""
GRACE = 90.0
"""Seconds after the end of the time that a row which has begun may still take."""
DEVICE = "import jax; first = jax.devices()[0]; print(first.platform, first.device_kind, sep='\\n')"
PEER = "import torch, transformers; print(torch.cuda.is_available())"
Measure = Literal["ours", "torch", "torch, compiled", "losses"]


class Row(NamedTuple):
    """What is measured: steps of one side at a shape, or our losses in two types."""

    preset: str
    layout: Layout
    length: int
    measure: Measure = "ours"

    @property
    def name(self) -> str:
        return f"{self.preset} {self.layout} {self.length}, {self.measure}"

    @property
    def peer(self) -> bool:
        return self.measure.startswith("torch")


def rows_of(presets: Sequence[str]) -> list[Row]:
    """Return the rows in the order of their worth."""
    sides: tuple[Measure, ...] = ("ours", "torch", "torch, compiled")
    documents: tuple[Layout, ...] = ("packed", "window")
    return [
        *(Row(preset, "plain", 512, side) for preset in presets for side in sides),
        *(Row(preset, layout, 512) for preset in presets for layout in documents),
        *(Row(preset, "plain", length) for length in (128, 1024) for preset in presets),
        *(Row(preset, "plain", length, side) for side in sides[1:] for length in (128, 1024) for preset in presets),
        Row(presets[0], "plain", 512, "losses"),
    ]


@dataclass(frozen=True)
class Job:
    """What a process is asked for, as JSON."""

    measure: Measure
    layout: Layout
    device: Literal["cuda", "cpu"]
    seconds: float
    shape: Shape


# ---- in the process of a row ---------------------------------------------------------------------


def work(text: str) -> None:
    """Measure what the JSON asks for, and print it as a line of JSON."""
    given = json.loads(text)
    job = Job(**{**given, "shape": Shape(**given["shape"])})
    try:
        found = losses(job.shape) if job.measure == "losses" else steps(job)
    except Exception as error:
        if not any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "out of memory")):
            raise
        found = {"too_large": str(error).splitlines()[0][:200]}
    print(json.dumps(found), flush=True)


def steps(job: Job) -> dict[str, Any]:
    """Time steps of a side one after the other, and wait for the last one only."""
    began = time.perf_counter()
    found: dict[str, Any] = {}
    if job.measure == "ours":
        step, found["attention"] = our_step(job.shape, "bfloat16", job.layout)
    else:
        compiled = job.measure == "torch, compiled"
        step = torch_step(job.shape, "bfloat16", compiled, job.device, masked=False)
    for _ in range(FEWEST):
        float(step())
    found["seconds_before_the_first_step"] = time.perf_counter() - began
    count = max(FEWEST, math.ceil(job.seconds / _taken(step, 1)[0]))
    seconds, loss = _taken(step, count)
    found |= {"milliseconds": 1e3 * seconds / count, "steps": count, "loss": loss}
    for _ in range(count // 4 + 1):
        last = step()
    found["gpu"] = gpu()  # while it computes
    float(last)
    return found | (_ours_used() if job.measure == "ours" else _torch_used(job.device))


def _taken(step: Step, count: int) -> tuple[float, float]:
    """Return the seconds that some steps take, and the last one's loss."""
    began = time.perf_counter()
    for _ in range(count):
        loss = step()
    value = float(loss)
    return time.perf_counter() - began, value


def _ours_used() -> dict[str, Any]:
    """Return the most memory that was used, and the versions of libraries."""
    import jax

    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "memory_peak": memory.get("peak_bytes_in_use"),
        "versions": installed("jaxlib", "jax-cuda", "jax_cuda", "nvidia-cudnn"),
    }


def _torch_used(device: str) -> dict[str, Any]:
    import torch

    memory = torch.cuda.max_memory_allocated() if device == "cuda" else None
    versions = installed("torch", "transformers", "triton", "nvidia-cudnn")
    return {"memory_peak": memory, "versions": {**versions, "cuda": torch.version.cuda}}


def losses(shape: Shape) -> dict[str, Any]:
    """Return the losses of the same steps, with the same masks, in both types: float32 is exact in its products."""
    import jax

    found: dict[str, list[float]] = {}
    for dtype, precision in (("float32", "highest"), ("bfloat16", None)):
        with jax.default_matmul_precision(precision):
            step, _ = our_step(shape, dtype)
            found[dtype] = [float(step()) for _ in range(EQUAL_STEPS)]
    apart = max(abs(a - b) for a, b in zip(*found.values(), strict=True))
    return {"losses": found, "largest_difference": apart, **_ours_used()}


# ---- in the process that asks --------------------------------------------------------------------


class Failed(Exception):
    """A row's process ended without an answer."""


def answer(job: Job, python: str, limit: float) -> dict[str, Any]:
    """Return what a process of its own finds, and end it and its children after `limit` seconds.

    Raises:
        TimeoutError: it took longer.
        Failed: it has no answer; the message is the last line of its errors, of which more are printed.
    """
    line = [python, str(Path(sys.argv[0]).resolve()), "--row", json.dumps(asdict(job))]
    process = subprocess.Popen(
        line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, said = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"it took longer than {limit:.0f} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode or not out.strip():
        print(said[-3000:], file=sys.stderr, flush=True)
        raise Failed((said.strip().splitlines() or [f"it ended with {process.returncode}"])[-1][:300])
    return json.loads(out.splitlines()[-1])


def environment() -> dict[str, str]:
    """Return the environment of a row's process, which sees one GPU."""
    env = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    env["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    root = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return env


def measure(row: Row, shape: Shape, device: Any, seconds: float, python: str, limit: float) -> dict[str, Any]:
    """Return a row's figures; the batch is halved until it fits.

    Raises:
        TimeoutError, Failed: as `answer`.
    """
    until = time.monotonic() + limit
    while True:
        found = answer(Job(row.measure, row.layout, device, seconds, shape), python, until - time.monotonic())
        if "too_large" not in found:
            return {**asdict(shape), **found}
        if shape.batch == 1:
            raise Failed(found["too_large"])
        shape = replace(shape, batch=shape.batch // 2)


def used(row: Row, found: dict[str, Any], peak: float | None) -> dict[str, Any]:
    """Return rates of a row: real tokens a second, and shares of the device's peak.

    `mfu` counts what has to be computed for real tokens and for the pairs that attend, and `mfu_dense` all positions
    and all pairs of a row in each layer.
    """
    from jax_mlm.cost.flops import document_lengths, layers_pairs, train_flops

    shape = Shape(**{name: found[name] for name in Shape.__dataclass_fields__})
    model, (batch, documents) = model_of(shape, row.layout), batch_of(shape, row.layout)
    lengths = document_lengths(np.asarray(batch.segments))
    real, every = int(lengths.sum()), shape.batch * shape.length
    targets, seconds = shape.batch * math.ceil(MASKED * shape.length), found["milliseconds"] / 1e3
    useful = train_flops(model, real, layers_pairs(model, lengths), targets)
    dense = train_flops(model, every, shape.layers * every * shape.length, targets, every)
    return {
        "tokens_per_second": real / seconds,
        "mfu": useful / seconds / peak if peak else None,
        "mfu_dense": dense / seconds / peak if peak else None,
        "flops": useful,
        "tokens": real,
        "padding": 1 - real / every,
        "most_documents": documents,
    }


class Table:
    """The rows that were measured, by the name of the card, in a file that is written after each one."""

    def __init__(self, path: Path, card: str) -> None:
        self.path = path
        self.cards: dict[str, dict[str, Any]] = json.loads(path.read_text())["cards"] if path.exists() else {}
        self.rows = self.cards.setdefault(card, {})

    def keep(self, row: Row, found: dict[str, Any]) -> None:
        self.rows[row.name] = {**found, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(shortened(json.dumps({"command": command(sys.argv), "cards": self.cards}, indent=1)) + "\n")
        fresh.replace(self.path)

    def left(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows that are not there yet, and after them those that have failed."""
        failed = [row for row in rows if "failed" in self.rows.get(row.name, {})]
        return [row for row in rows if row.name not in self.rows] + failed


def run(out: Path, minutes: float, peer_python: str | None, dry: bool, say: Callable[[str], None] = print) -> None:
    """Measure one row after the other until all are there or the time is over, and print each.

    Without `peer_python`, the peer is measured by this Python if it has the peer's libraries.
    """
    from jax_mlm.cost.flops import peak_flops
    from jax_mlm.presets import PRESETS

    end = time.monotonic() + 60 * minutes
    platform, card = told(sys.executable, DEVICE) or ("", "")
    if platform != "gpu" and not dry:
        raise SystemExit("error: JAX finds no GPU: is there one, and is the extra 'cuda' installed?")
    table, peak, names = Table(out, card), peak_flops(card), ("base", "large")
    rows = rows_of(names[:1] if dry else names)
    peer_python = peer_python or here()
    if why := without_peer(peer_python, dry):
        say(f"rows of transformers are left out: {why}")
        rows = [row for row in rows if not row.peer]
    for row in table.left(rows):
        if time.monotonic() >= end:
            say("the time is over: the same command goes on with the next row")
            return
        model = PRESETS[row.preset].model
        vocabulary = PRESETS[row.preset].corpus.tokenizer_limit
        count = TOKENS // 4 if row.measure == "losses" else TOKENS  # float32 takes more memory
        shape = Shape(
            model.width, model.layers, model.heads, model.ff_width, vocabulary, max(1, count // row.length), row.length
        )
        if dry:
            shape = replace(shape, width=32, layers=2, heads=2, ff_width=48, vocabulary=512, batch=2)
        left, python = end + GRACE - time.monotonic(), peer_python if row.peer and peer_python else sys.executable
        try:
            found = measure(row, shape, "cpu" if dry else "cuda", 0.0 if dry else SECONDS, python, min(LONGEST, left))
            if row.measure != "losses":
                found |= used(row, found, peak)
        except TimeoutError as late:
            if left < LONGEST:
                say(f"{row.name:34} not in the time that was left")
                return
            found = {"failed": str(late)}
        except Failed as error:
            found = {"failed": str(error)}
        table.keep(row, found)
        say(line_of(row, found))
    say(f"all rows are in {out}")


def told(python: str, program: str) -> list[str]:
    """Return the lines that a program prints; none where it fails, and then what it says of that is printed."""
    done = subprocess.run([python, "-c", program], env=environment(), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.splitlines()
    print(done.stderr, end="", file=sys.stderr)
    return []


def here() -> str | None:
    """Return this Python if it has the peer's libraries."""
    return sys.executable if all(map(find_spec, ("torch", "transformers"))) else None


def without_peer(python: str | None, dry: bool) -> str:
    """Return why the peer cannot be measured; empty if it can."""
    if not python:
        return "this Python has no PyTorch and transformers, and --peer-python names none that has"
    match told(python, PEER):
        case ["True"]:
            return ""
        case ["False"]:
            return "" if dry else f"PyTorch in {python} finds no GPU"
    return f"{python} has no PyTorch and transformers"


def line_of(row: Row, found: dict[str, Any]) -> str:
    """Return a row in words."""
    if "failed" in found:
        return f"{row.name:34} failed: {found['failed']}"
    if row.measure == "losses":
        return f"{row.name:34} at most {found['largest_difference']:.4f} apart after {EQUAL_STEPS} steps"
    shares = "" if found["mfu"] is None else f"  mfu {found['mfu']:.1%} (dense {found['mfu_dense']:.1%})"
    memory = "" if found["memory_peak"] is None else f"  {found['memory_peak'] / 1e9:.0f} GB"
    return (
        f"{row.name:34} {found['milliseconds']:9.2f} ms  {found['tokens_per_second']:11,.0f} tokens/s"
        f"{shares}{memory}  batch {found['batch']}"
    )
