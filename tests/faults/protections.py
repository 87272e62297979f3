"""Remove each protection in turn, and see its test fail: `python tests/faults/protections.py`.

Every file of `removals/` lists what can happen, what the program does, the test that proves it, and the text that the
protection is without. The table of docs/contract.md is made from them (`--table`). A test that passes without its
protection proves nothing, so this script exits with 1. It takes some ten minutes; what has been tried on the same text
and test is not tried again. The result is kept in benchmarks/results/protections.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "protections.json"
COMMAND = "python tests/faults/protections.py"


class Row(NamedTuple):
    """A fault, what the program does, and how to take that away."""

    happens: str
    does: str
    test: str
    file: str
    find: str
    replace: str


def read_rows() -> list[Row]:
    """Return the rows of all files, in the order of their names."""
    files = sorted((ROOT / "tests" / "faults" / "removals").glob("*.toml"))
    return [Row(**row) for file in files for row in tomllib.loads(file.read_text())["row"]]


def table(rows: list[Row]) -> str:
    """Return the table of docs/contract.md; a row may be there for several protections."""
    lines = {f"| {row.happens} | {row.does} | `{row.test}` |": None for row in rows}
    return "\n".join(["| what can happen | what the program does | which test proves it |", "|---|---|---|", *lines])


def without(row: Row, root: Path) -> str:
    """Return the file's text without the protection."""
    text = (root / row.file).read_text()
    if text.count(row.find) != 1:
        raise ValueError(f"{row.file} has {text.count(row.find)} times, not once: {row.find}")
    return text.replace(row.find, row.replace)


def digest(row: Row) -> str:
    """Return what a result is good for: the row, its file and its test file as they are."""
    parts = (*row, (ROOT / row.file).read_text(), (ROOT / row.test.split("::")[0]).read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def passes(test: str, root: Path) -> tuple[bool, str]:
    """Run a test on the copy; return whether it passes, and the runner's last line."""
    path = os.pathsep.join([str(root), str(root / "export")])
    marks = ["-m", "not campaign"]
    line = [sys.executable, "-m", "pytest", "-n", "0", "-x", "--timeout", "100", *marks, test]
    done = subprocess.run(
        line, cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{test} did not run (status {done.returncode}): {done.stdout[-2000:]}{done.stderr[-2000:]}")
    if not any(word in last for word in ("passed", "failed", "error")):  # an error: the run that it looks at failed
        raise RuntimeError(f"{test} was not run: {last}")
    return done.returncode == 0, last


def main() -> int:
    """Try every row that was not tried as it is now; return 0 if each test fails without its protection."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the table of docs/contract.md, and run nothing")
    parser.add_argument("--only", default="", help="rows whose test or file contains this text")
    given, rows = parser.parse_args(), read_rows()
    if given.table:
        print(table(rows))
        return 0
    kept = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    known = {each["digest"]: each for each in kept}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns("__pycache__", ".git", ".venv", "*.egg-info", "runs", "bundles")
        shutil.copytree(ROOT, copy, ignore=ignored)
        os.environ.setdefault("JAX_MLM_SHARED", str(ROOT.parent / "shared" / "data"))
        for number, row in enumerate(rows, 1):
            name = digest(row)
            if given.only in row.test + row.file and name not in known:
                whole, changed = (copy / row.file).read_text(), without(row, copy)
                (copy / row.file).write_text(changed)
                passed, last = passes(row.test, copy)
                (copy / row.file).write_text(whole)
                known[name] = {"digest": name, **row._asdict(), "test fails": not passed, "runner": last}
                result = {"command": COMMAND, "rows": [known[key] for key in map(digest, rows) if key in known]}
                RESULT.write_text(json.dumps(result, indent=1) + "\n")
                print(f"{number}/{len(rows)} {'ok' if not passed else 'NOT PROVED'}  {row.test}  {last}", flush=True)
    unproved = [row.test for row in rows if digest(row) in known and not known[digest(row)]["test fails"]]
    tried = sum(digest(row) in known for row in rows)
    print(f"{tried} of {len(rows)} protections removed; {len(unproved)} tests did not fail: {unproved}")
    return 1 if unproved else 0


if __name__ == "__main__":
    sys.exit(main())
