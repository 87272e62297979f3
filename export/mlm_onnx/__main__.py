"""`python -m mlm_onnx COMMAND` and `mlm-onnx COMMAND`: run a command, report errors in one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence

from mlm_onnx.bundle.layout import MlmOnnxError
from mlm_onnx.cli import answer, convert, demo, inspect
from mlm_onnx.cli.parser import Command, command_map, read
from mlm_onnx.version import versions

COMMANDS: Mapping[str, Command] = {**convert.COMMANDS, **answer.COMMANDS, **demo.COMMANDS, **inspect.COMMANDS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status: 0, or 2 after one line on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        if not argv or argv[0] in ("-h", "--help"):
            print(command_map(COMMANDS))
        elif argv[0] == "--version":
            print(versions())
        else:
            options = read(COMMANDS, argv[0], argv[1:])
            COMMANDS[argv[0]].run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (MlmOnnxError, OSError) as error:
        # An OSError that is not from the operating system is a defect: keep the traceback.
        if isinstance(error, OSError) and error.errno is None:
            raise
        said = " ".join(str(error).split())
        print(f"error: {said if len(said) <= 2000 else f'{said[:1000]} … {said[-1000:]}'}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
