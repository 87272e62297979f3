"""The sides of a comparison: processes that take steps in turns, so that a drift of the machine affects all alike."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from common.arms import environment


def serve(about: Any, step: Callable[[], float]) -> None:
    """Print what is known of a side before its turns; for each number on stdin, print the seconds of so many steps."""
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(json.dumps([step() for _ in range(int(line))]), flush=True)


class Side(ExitStack):
    """A process that serves; it is killed where the block ends."""

    def __init__(self, line: Sequence[str], cores: Sequence[int] | None = None, **env: str) -> None:
        """Start a command, with some variables and on some cores, or on all."""
        super().__init__()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.line = line
        self.process = self.enter_context(subprocess.Popen(line, env={**environment(), **env}, **pipes))
        self.callback(self.process.kill)
        if cores is not None:
            os.sched_setaffinity(self.process.pid, cores)  # before it has begun any thread

    def ready(self) -> Any:
        """Wait until it serves, and return what it printed before.

        Raises:
            SystemExit: it ended instead.
        """
        return self._read()

    def take(self, steps: int) -> list[float]:
        """Return the seconds of each of some steps."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # which is reported where its answer is read
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        if not (said := self.process.stdout.readline()):
            raise SystemExit(f"error: a side of the comparison ended too early: {shlex.join(self.line)}")
        return json.loads(said)
