"""Kill a training run at random moments, start it again until it ends, and compare it with one that nobody killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jax_mlm.run.directory import read_run_file
from jax_mlm.run.log import read_metrics, read_samples
from support.forked import Child, Server
from support.paths import ROOT

TRAIN = "jax_mlm.train.__main__"
IMPORTS = ("jax_mlm.train.loop", "jax_mlm.report.outcome", TRAIN)
SLOW = {
    "tokenizer": 0.4, "preparation": 0.2, "append": 0.1, "publish": 0.1, "evaluation": 0.1, "save": 0.1, "rename": 0.1,
    "drawing": 0.2, "finishing": 0.2,
}  # fmt: skip
"""Seconds by which a phase takes longer, so that a kill finds it: the renames are those of a checkpoint's commit."""
LASTS = {
    "start-up": 0.3, "tokenizer": 0.25, "preparation": 0.35, "compilation": 1.2, "steps": 1.5, "evaluation": 0.1,
    "save": 0.3, "drawing": 0.4, "finishing": 0.5,
}  # fmt: skip
"""Seconds after a phase's beginning in which the kill comes."""
EARLY = ("start-up", "tokenizer", "preparation", "compilation")
LATE = ("steps", "evaluation", "save", "drawing", "finishing", "compilation", "start-up")
TIMES = {"seconds", "waited", "tokens_per_second", "steps_per_second", "mfu", "flops_per_second"}
"""Fields of metrics.jsonl that are times, or rates."""


def fresh_cache(cache: Path) -> Path:
    """Make a cache in which no token is prepared, and the compiled programs of the whole session are."""
    programs = Path(os.environ["JAX_MLM_CACHE"]) / "xla"
    programs.mkdir(parents=True, exist_ok=True)
    cache.mkdir()
    (cache / "xla").symlink_to(programs)
    return cache


class Kill(NamedTuple):
    """A kill as it happened."""

    aimed: str
    phase: str
    """The phase that it found under way."""


def stratified(rng: np.random.Generator, late: int) -> list[str]:
    """Return phases to kill a run in: each early one, then some of the later ones."""
    return [*EARLY, *(str(rng.choice(LATE)) for _ in range(late))]


def killed(
    server: Server, options: list[Any], run: Path, phases: Iterable[str], rng: np.random.Generator
) -> Iterator[Kill]:
    """Train with kills in these phases, one a start, and then to the end; yield each kill."""
    again: list[Any] = []
    for phase in phases:
        child = server.start(TRAIN, *options, "--out", run, *again, slow=SLOW)
        if _comes(child, phase, int(rng.integers(1, 3))):
            time.sleep(rng.uniform(0.0, LASTS[phase]))
        found = child.phase()
        child.signal(signal.SIGKILL)
        status = child.wait()
        assert status in (0, -signal.SIGKILL), (status, child.err())
        again = ["--resume"]
        if status:
            yield Kill(phase, found)
    status, child = server.run(TRAIN, *options, "--out", run, *again)
    assert status == 0, child.err()
    assert "Traceback" not in child.err()


def _comes(child: Child, phase: str, count: int) -> bool:
    """Wait for a phase; evaluations, saves and drawings come more than once."""
    if phase == "start-up":
        return True
    return child.wait_for(f"+{phase}", count if phase in ("evaluation", "save") else 1)


def assert_same_run(one: Path, other: Path) -> None:
    """Two runs hold the same: every array of the state, every figure but the times, samples, tokenizer, text."""
    assert without_times(one) == without_times(other)
    assert read_samples(one) == read_samples(other)
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert read_run_file(one)["data"] == read_run_file(other)["data"]
    mine, theirs = newest_state(one), newest_state(other)
    assert len(mine) > 20
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        assert np.array_equal(array, theirs[name], equal_nan=True), name
    left = {path.name for path in other.iterdir() if path.name.startswith(".")}
    assert not left, "neither a lock nor half a file"


def without_times(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, without the times in them."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_metrics(run)]


def newest_state(run: Path) -> dict[str, np.ndarray]:
    """Return every array of the newest checkpoint by its path, read by Orbax alone: parameters, optimizer and step."""
    step = max(int(folder.name) for folder in (run / "checkpoints").iterdir() if folder.name.isdecimal())
    with ocp.PyTreeCheckpointer() as reader:
        folder = (run / "checkpoints" / str(step) / "state").absolute()
        shapes = reader.metadata(folder).item_metadata.tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        tree = reader.restore(folder, restore_args=arguments)
    arrays, _ = jax.tree.flatten_with_path(tree)
    return {"step": np.asarray(step), **{jax.tree_util.keystr(path): np.asarray(array) for path, array in arrays}}


def campaign(file: Path, kills: int, command: str, run_one: Callable[[int], Iterator[Kill]]) -> dict[str, Any]:
    """Kill until so many kills are done; a campaign that was begun continues with the run that it was in.

    The file is written after each kill.
    """
    done: list[list[Kill]] = []
    if file.is_file() and (before := json.loads(file.read_text()))["command"] == command:
        done = [[Kill(*kill) for kill in run] for run in before["runs"]]

    def write(under_way: list[Kill], finished: bool) -> dict[str, Any]:
        every = [kill for run in [*done, under_way] for kill in run]
        phases = {kill.phase for kill in every}
        result = {
            "command": command,
            "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip(),
            "kills": len(every),
            "by_phase": {phase: sum(kill.phase == phase for kill in every) for phase in sorted(phases)},
            "runs_compared": len(done),
            "runs_that_differ": 0,  # the first one ends the campaign
            "finished": finished,
            "runs": [*done],
        }
        file.write_text(json.dumps(result, indent=1) + "\n")
        return result

    while sum(map(len, done)) < kills:
        found: list[Kill] = []
        for kill in run_one(len(done)):
            found.append(kill)
            write(found, False)
        done.append(found)
        write([], False)
    return write([], True)
