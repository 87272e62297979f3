"""Arms of a comparison: each is measured by a process of its own, and its record is kept at once.

The peer's Python need not have JAX: nothing here imports a framework.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.machine import processor, shortened

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "recipe.md"
Record = dict[str, Any]


def command_line(about: str | None) -> argparse.ArgumentParser:
    """Return a parser of what all comparisons take: the text, and whether only the table is wanted."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", help="text to train on")
    parser.add_argument("--valid", nargs="+", help="text to validate on")
    parser.add_argument(
        "--table", action="store_true", help="print the table, write it to the page, and measure nothing"
    )
    return parser


def environment() -> dict[str, str]:
    """Return the environment of a process that measures; it has huge pages, which training commands ask glibc for."""
    import_from = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(import_from), "HF_HUB_OFFLINE": "1"}
    return {**env, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def answer(line: Sequence[str], job: Record, stopped: Callable[[], bool] = lambda: False) -> Record:
    """Run a command whose last argument is a job in JSON; return the JSON object of the last line that it prints.

    It is killed once `stopped` returns True: a thread gets no signals.
    """
    process = subprocess.Popen([*line, json.dumps(job)], env=environment(), stdout=subprocess.PIPE, text=True)
    out = None
    try:
        while out is None:
            with suppress(subprocess.TimeoutExpired):
                out, _ = process.communicate(timeout=1)
            if stopped():
                raise SystemExit("error: stopped")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode or not out.strip():
        raise SystemExit(f"error: a process ended with status {process.returncode}; what was measured before is kept")
    return json.loads(out.splitlines()[-1])


def has(python: str, modules: str) -> bool:
    """Return whether a Python imports these modules."""
    return subprocess.run([python, "-c", f"import {modules}"], capture_output=True, check=False).returncode == 0


def facts() -> dict[str, str]:
    """Return where and when each record was measured."""
    return {"processor": processor(), "commit": commit(), "date": time.strftime("%Y-%m-%d")}


def commit() -> str:
    """Return the commit that is measured, with a plus if its code was changed; empty outside a checkout."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    diff = [*git, "diff", "--quiet", "HEAD", "--", "jax_mlm", "benchmarks/*.py"]
    changed = subprocess.run(diff, capture_output=True, check=False)
    return head.stdout.strip() + ("+" if head.returncode == 0 and changed.returncode == 1 else "")


def text_name(files: Sequence[str]) -> str:
    """Return the name of a text in the names of results: that of the folder which holds it."""
    return Path(files[0]).resolve().parent.name


def keep(path: Path, record: Record) -> None:
    """Write a result; one that is interrupted leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(shortened(json.dumps(record, indent=1)) + "\n", encoding="utf-8")
    fresh.replace(path)


def rows(*cells: Sequence[object]) -> str:
    """Return a table in Markdown; the first row is its head."""
    lines = ["| " + " | ".join(map(str, each)) + " |" for each in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def filled(page: str, part: str, text: str) -> str:
    """Return the page with what stands between the two comments of a part replaced."""
    begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->\n"
    head, rest = page.split(begin)
    return f"{head}{begin}{text}\n{end}{rest.split(end)[1]}"


def publish(part: str, text: str) -> None:
    """Print a table, and put it into the page."""
    print(text)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), part, text), encoding="utf-8")
    print(f"written to {PAGE.relative_to(ROOT)}", file=sys.stderr)
