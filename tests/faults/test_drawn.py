"""Thousands of bad files and command lines, drawn for each reader, the same each time."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from support.garbage import RESULT, captured_line, record, recorded, scratch, strange
from support.kinds import SLOTS, TEXT, Kind, kinds  # noqa: F401  a fixture
from support.paths import ROOT

MEGABYTES = 2000
SECONDS = 10
NAMES = ("text", "JSON", "tables", "Parquet", "words", "names", "options", "tokenizers", "models", "runs", "questions")
CHEAP = ("text", "JSON", "tables", "Parquet", "words", "questions")


def tried(kind: Kind, count: int, root: Path) -> dict[str, float]:
    """Try about so many cases of a kind; return how many ended in which way, and the longest."""
    ended: dict[str, float] = {"accepted": 0, "refused": 0, "slowest": 0.0}

    @settings(
        derandomize=True, database=None, deadline=None, max_examples=count, suppress_health_check=list(HealthCheck)
    )
    @given(kind.cases)
    def every(case: Any) -> None:
        began = time.process_time()
        with scratch(root) as folder:
            outcome = kind.perform(case, folder)
        ended["refused" if outcome.status else "accepted"] += 1
        ended["slowest"] = max(ended["slowest"], round(time.process_time() - began, 2))

    every()
    assert ended["slowest"] < SECONDS  # of processor time
    return ended


@pytest.mark.parametrize("name", CHEAP)
def test_a_few_of_the_cheapest(name: str, kinds: dict[str, Kind], tmp_path: Path) -> None:  # noqa: F811
    ended = tried(kinds[name], 5, tmp_path)
    assert ended["accepted"] + ended["refused"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_three_hundred(name: str, kinds: dict[str, Kind], tmp_path: Path) -> None:  # noqa: F811
    ended = tried(kinds[name], kinds[name].share // 11, tmp_path)
    assert ended["accepted"] + ended["refused"] >= kinds[name].share // 12


@pytest.mark.campaign
@pytest.mark.parametrize("name", NAMES)
def test_three_thousand(name: str, kinds: dict[str, Kind], tmp_path: Path) -> None:  # noqa: F811
    if name in recorded().get("in process", {}):
        pytest.skip(f"done, see {RESULT}: remove it to start anew")
    ended = tried(kinds[name], kinds[name].share, tmp_path)
    assert ended["accepted"] + ended["refused"] >= kinds[name].share * 0.9
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    assert memory < MEGABYTES
    record("in process", name, {**ended, "peak_megabytes": memory})


# ---- real processes ------------------------------------------------------------------------------

MODULES = {"train": "jax_mlm.train.__main__", "evaluate": "jax_mlm.evaluate", "compare": "jax_mlm.compare"}


def lines() -> Iterator[tuple[str, list[str]]]:
    """Yield what is named and a command line of each command: 60, spread over what may stand where."""
    with_names = [(slot, number) for number in range(30) for slot in SLOTS]
    for slot, number in with_names[:: len(with_names) // 60][:60]:
        yield slot, [slot, str(number)]


def in_a_process(slot: str, number: int, folder: Path) -> dict[str, Any]:
    """Run the command of a slot with a strange name; return its status, the time and the memory it took."""
    (folder / "text.txt").write_text(TEXT)
    names = list(strange(folder).values())
    main, argv = SLOTS[slot](names[number % len(names)])
    module = main.__module__ if main.__name__ == "main" and main.__module__ != "jax_mlm.cli.command" else ""
    module = module or MODULES[slot.split()[0]]
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_CPU, (120, 120)); import sys; sys.argv[1:] = {argv!r}"
    code = f"{limit}; from {module} import main; sys.exit(main())"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'export'}",
        "JAX_MLM_CACHE": str(folder / "cache"),
    }
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, timeout=300, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    said = done.stderr.decode("utf-8", "replace")
    assert done.returncode in (0, 2), (slot, number, said)
    assert "Traceback" not in said, said
    if done.returncode:
        captured_line(said)
    return {"status": done.returncode, "seconds": round(time.monotonic() - began, 1)}


@pytest.mark.slow
def test_five_real_processes(tmp_path: Path) -> None:
    for slot in ("train --data", "train --resume", "compare RUN", "import HF_DIR", "fill BUNDLE"):
        with scratch(tmp_path) as folder:
            assert in_a_process(slot, 0, folder)["status"] == 2  # a pipe that nobody writes to


@pytest.mark.campaign
def test_sixty_real_processes(tmp_path: Path) -> None:
    for slot, (_, number) in lines():
        key = f"{slot}, name {number}"
        if key in recorded().get("processes", {}):
            continue
        with scratch(tmp_path) as folder:
            record("processes", key, in_a_process(slot, int(number), folder))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    assert peak < MEGABYTES
    assert len(recorded()["processes"]) >= 60
