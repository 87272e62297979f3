"""`python -m mlm_onnx COMMAND` and `mlm-onnx COMMAND`: run a command, report errors in one line."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Mapping, Sequence

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() answers it: an import would end in a traceback

from mlm_onnx.bundle.layout import MlmOnnxError
from mlm_onnx.cli import answer, convert, demo, inspect, tasks
from mlm_onnx.cli.parser import Command, command_map, read
from mlm_onnx.cli.signals import requests_to_stop, stop_of
from mlm_onnx.version import versions

COMMANDS: Mapping[str, Command] = {
    **convert.COMMANDS,
    **answer.COMMANDS,
    **tasks.COMMANDS,
    **demo.COMMANDS,
    **inspect.COMMANDS,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return 0, 2 after one line on stderr, or 128 + the signal that ended it."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        with requests_to_stop():
            if not argv or argv[0] in ("-h", "--help"):
                print(command_map(COMMANDS))
            elif argv[0] == "--version":
                print(versions())
            else:
                options = read(COMMANDS, argv[0], argv[1:])
                COMMANDS[argv[0]].run(options)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has closed the pipe
        _discard_output()
        return 141
    except (Exception, KeyboardInterrupt) as error:
        if (stop := stop_of(error)) is not None:
            number = getattr(stop, "number", signal.SIGINT)
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            _say_last(f"stopped{by}{': ' + str(stop) if str(stop) else ''}")
            return 128 + number
        # An OSError that is not from the operating system is a defect: keep the traceback.
        if not isinstance(error, (MlmOnnxError, OSError)) or (isinstance(error, OSError) and error.errno is None):
            raise
        said = " ".join(str(error).split())
        print(f"error: {said if len(said) <= 2000 else f'{said[:1000]} … {said[-1000:]}'}", file=sys.stderr)
        return 2
    return 0


def _say_last(line: str) -> None:
    """Print a line on stderr, unless its reader is gone, as a terminal is after SIGHUP."""
    try:
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:
        _discard_output()


def _discard_output() -> None:
    """Let nothing fail that is printed from now on."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
