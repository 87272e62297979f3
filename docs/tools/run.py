"""Run the commands of a page and write what they print below them: `python docs/tools/run.py PAGE…`.

In a fence ```console, a line that begins with `$ ` is a command (`> ` continues it), and what follows is what it prints
on stdout. All commands of a page run in one empty folder. `--check` changes nothing and ends with 1 where the output
has changed in more than its numbers; in a fence ```console varies, words may change too.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"-?\d[\d,.]*(?:e[-+]?\d+)?")


class Fence(NamedTuple):
    """A fenced block of a page."""

    info: tuple[str, ...]
    """The words after the opening fence: the language, then remarks."""
    body: str
    span: tuple[int, int]
    """Start and end of the body in the page."""


def fences(text: str) -> list[Fence]:
    """Return all fenced blocks, in order."""
    return [Fence(tuple(m["info"].split()), m["body"], m.span("body")) for m in FENCE.finditer(text)]


def commands(body: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block, with its output."""
    for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
        lines = part.splitlines()
        count = 1
        while count < len(lines) and lines[count].startswith("> "):
            count += 1
        command = "\n".join([lines[0], *(line[2:] for line in lines[1:count])])
        yield command, "".join(f"{line}\n" for line in lines[count:])


def execute(command: str, folder: Path) -> str:
    """Return what the command prints on stdout; `python` is the one that runs this."""
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": beside, "COLUMNS": "100"}
    line = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return "".join(f"{part.rstrip()}\n" for part in done.stdout.splitlines())


def rerun(text: str, folder: Path) -> str:
    """Return the page with the output of every command as it is now."""
    pieces, end = [], 0
    for fence in fences(text):
        if fence.info[:1] != ("console",):
            continue
        body = ""
        for command, _ in commands(fence.body):
            first, *rest = command.split("\n")
            body += "".join([f"$ {first}\n", *(f"> {line}\n" for line in rest), execute(command, folder)])
        pieces += [text[end : fence.span[0]], body]
        end = fence.span[1]
    return "".join([*pieces, text[end:]])


def differences(before: str, now: str) -> list[str]:
    """Return the lines of output that changed in more than numbers and spaces."""
    changed = []
    for old, new in zip(fences(before), fences(now), strict=True):
        if "varies" in old.info:
            continue
        shapes = [[" ".join(NUMBER.sub("0", line).split()) for line in part.body.splitlines()] for part in (old, new)]
        if shapes[0] != shapes[1]:
            changed += difflib.unified_diff(
                old.body.splitlines(), new.body.splitlines(), "page", "now", n=0, lineterm=""
            )
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", metavar="PAGE", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing, and print what has changed")
    options = parser.parse_args()
    changed = []
    for page in options.pages:
        text = page.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            now = rerun(text, Path(folder))
        if options.check:
            changed += differences(text, now)
        else:
            page.write_text(now, encoding="utf-8")
    print("\n".join(changed), end="\n" if changed else "")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
