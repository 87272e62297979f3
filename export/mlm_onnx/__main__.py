"""`python -m mlm_onnx COMMAND`: strings in, one clear line out when something is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mlm_onnx.cli.answer import (
    _declare_embed,
    _declare_explain,
    _declare_fill,
    _declare_score,
    _embed,
    _explain,
    _fill,
    _score,
)
from mlm_onnx.cli.convert import _convert, _declare_convert
from mlm_onnx.cli.demo import _declare_demo, _demo
from mlm_onnx.cli.inspect import _declare_info, _info
from mlm_onnx.cli.parser import PROG, Command, command_map, read, versions

if TYPE_CHECKING:
    pass

# ---- commands ------------------------------------------------------------------------------------


COMMANDS: Mapping[str, Command] = {
    "convert": Command(
        "a training run becomes a bundle",
        (f"{PROG} convert runs/sentence bundle", f"{PROG} convert runs/small bundle --for hub"),
        _declare_convert,
        _convert,
    ),
    "fill": Command(
        "the likeliest words at each mask of a text",
        (
            f'{PROG} fill bundle "This model [MASK] a super"',
            f'{PROG} fill bundle "a [MASK] day" --targets good,bad --json',
        ),
        _declare_fill,
        _fill,
    ),
    "explain": Command(
        "which words an answer hangs on: each other word is hidden in turn",
        (
            f'{PROG} explain bundle "This model [MASK] a super"',
            f'{PROG} explain bundle "a [MASK] day" --target good --json',
        ),
        _declare_explain,
        _explain,
    ),
    "score": Command(
        "how likely a sentence is (pseudo-log-likelihood)",
        (f'{PROG} score bundle "This model creates a super"', f'{PROG} score bundle "a good day" --json'),
        _declare_score,
        _score,
    ),
    "embed": Command(
        "a text as a vector: the mean of its hidden states",
        (f'{PROG} embed bundle "This model creates a super"', f'{PROG} embed bundle "a good day" --json'),
        _declare_embed,
        _embed,
    ),
    "demo": Command(
        "a page to try a bundle in, which explains each answer",
        (f"{PROG} demo bundle", f"{PROG} demo bundle --port 8080"),
        _declare_demo,
        _demo,
    ),
    "info": Command(
        "what a bundle holds, all of its files checked",
        (f"{PROG} info bundle", f"{PROG} info bundle --json"),
        _declare_info,
        _info,
    ),
}


# ---- parts ---------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit status: 0, or 2 after one line on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
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
    except BrokenPipeError:  # the reader of a pipe has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:  # UsageError, BundleError, QueryError, jax_mlm's UserError, files
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
