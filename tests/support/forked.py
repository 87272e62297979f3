"""Commands in processes of their own, forked from one that has imported what they import: each starts in a moment.

Run as a script it is that process. A child is a real process with the command's arguments, which may be killed; before
it runs, functions of the product or of its libraries are wrapped from outside: to mark when they begin and end in a
file, and to take longer than they would.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

MARKED = {
    "tokenizer": "jax_mlm.data.dataset:_new_tokenizer",
    "preparation": "jax_mlm.data.dataset:prepare",
    "compilation": "jax_mlm.train.loop:compile_program",
    "steps": "jax_mlm.train.loop:fit",
    "evaluation": "jax_mlm.train.loop:validate",
    "save": "jax_mlm.train.loop:save",
    "drawing": "jax_mlm.report.figures:draw",
    "finishing": "jax_mlm.train.loop:finish",
    "conversion": "mlm_onnx.convert.pipeline:_write_graphs",
    "sealing": "mlm_onnx.convert.pipeline:seal",
    "export": "jax_mlm.hf.directory:write_params",
    "import": "jax_mlm.hf.directory:saving",
    "append": "jax_mlm.data.token_files:Writer.append",
    "publish": "jax_mlm.data.prepare:publish",
    "rename": "os:rename",
    "replace": "os:replace",
    "fsync": "os:fsync",
    "demo": "mlm_onnx.demo.app:Demo",
    "answer": "mlm_onnx.cli.answer:_load",
}
"""Name of a phase → the function that it is."""


class Child:
    """A command that runs."""

    def __init__(self, server: Server, pid: int, folder: Path) -> None:
        self.server, self.pid, self.folder = server, pid, folder

    def marks(self) -> list[str]:
        """Return what has begun (+) and ended (-) so far, in order."""
        try:
            return (self.folder / "marks").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []

    def wait_for(self, mark: str, count: int = 1, seconds: float = 60.0) -> bool:
        """Return whether a mark has come so many times; give up when the command has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.marks().count(mark) >= count:
                return True
            if not running(self.pid):
                return self.marks().count(mark) >= count
            time.sleep(0.002)
        raise TimeoutError(f"{mark} after {self.marks()}: {self.err()}")

    def phase(self) -> str:
        """Return the innermost phase that is under way."""
        under_way = ["start-up"]
        for mark in self.marks():
            if mark[0] == "+":
                under_way.append(mark[1:])
            elif mark[1:] in under_way:
                del under_way[len(under_way) - 1 - under_way[::-1].index(mark[1:])]
        return under_way[-1]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Return the exit status, or minus the signal that ended it."""
        return self.server.ask({"wait": self.pid})

    def out(self) -> str:
        return (self.folder / "out").read_text()

    def err(self) -> str:
        return (self.folder / "err").read_text()


class Server:
    """The process that commands are forked from."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder, self._count = process, folder, 0

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        module: str,
        *arguments: Any,
        slow: dict[str, float] | None = None,
        ignored: tuple[int, ...] = (),
        values: dict[str, Any] | None = None,
        cwd: Path | None = None,
    ) -> Child:
        """Run a module's `main` in a child.

        Args:
            slow: seconds by which phases take longer, half of them before and half after.
            ignored: signals that the child ignores from its start, as after `nohup`.
            values: what stands for constants of the product, by "module:name".
            cwd: the folder to run in; by default the caller's.
        """
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        line = [str(word) for word in arguments]
        request = {"module": module, "line": line, "folder": str(folder), "slow": slow or {}}
        request |= {"ignored": [*map(int, ignored)], "values": values or {}, "cwd": str(cwd or Path.cwd())}
        pid = self.ask({"start": request})
        return Child(self, pid, folder)

    def run(self, module: str, *arguments: Any, **settings: Any) -> tuple[int, Child]:
        """Run it to its end; return the exit status."""
        child = self.start(module, *arguments, **settings)
        return child.wait(), child


@contextmanager
def serving_forks(environment: dict[str, str], folder: Path, *imports: str) -> Iterator[Server]:
    """Start the process that commands are forked from."""
    line = [sys.executable, __file__, *imports]
    with subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Server(process, folder)
        assert process.stdin is not None
        process.stdin.close()


def running(pid: int) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _serve() -> None:
    """Fork for each request on stdin; end with it."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif (answer := os.fork()) == 0:
            answers.close()
            _become(**request["start"])
        print(answer, file=answers, flush=True)


def _become(
    module: str,
    line: list[str],
    folder: str,
    slow: dict[str, float],
    ignored: list[int],
    values: dict[str, Any],
    cwd: str,
) -> None:
    """Be the command."""
    for descriptor, name in ((0, os.devnull), (1, "out"), (2, "err")):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT
        os.dup2(os.open(os.path.join(folder, name), flags), descriptor)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    status = 1
    try:
        os.chdir(cwd)
        marks = os.open(os.path.join(folder, "marks"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for phase, where in MARKED.items():
            if where.partition(":")[0] in sys.modules:
                _wrap(where, phase, marks, slow.get(phase, 0.0))
        for where, value in values.items():
            name, _, attribute = where.partition(":")
            setattr(importlib.import_module(name), attribute, value)
        status = importlib.import_module(module).main(line)
        sys.stdout.flush()
        import threading

        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does before it ends
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _wrap(where: str, phase: str, marks: int, seconds: float) -> None:
    name, _, path = where.partition(":")
    owner: Any = sys.modules[name]
    *outer, attribute = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real: Callable[..., Any] = getattr(owner, attribute)

    @wraps(real)
    def marked(*arguments: Any, **named: Any) -> Any:
        os.write(marks, f"+{phase}\n".encode())
        try:
            time.sleep(seconds / 2)
            result = real(*arguments, **named)
            time.sleep(seconds / 2)
            return result
        finally:
            os.write(marks, f"-{phase}\n".encode())

    setattr(owner, attribute, marked)


if __name__ == "__main__":
    del sys.path[0]  # this folder, where tokenizers.py is not the library
    _serve()
