"""`python -m mlm_onnx demo`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from mlm_onnx.cli.parser import PROG, Command, UsageError, at_least_one


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `convert` wrote")
    parser.add_argument(
        "--port", type=at_least_one, metavar="N", default=7860, help="port to serve the page on (default: 7860)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 also serves the network (default: this machine only)"
    )
    parser.add_argument(
        "--threads", type=at_least_one, metavar="N", help="threads to compute with (default: one per core, up to 4)"
    )


def run(options: argparse.Namespace) -> None:
    try:
        from mlm_onnx.demo import serve
    except ModuleNotFoundError as error:
        needed = (error.name or "").split(".")[0]
        raise UsageError(f"demo needs {needed}, which is not installed: pip install 'mlm-onnx[demo]'") from None
    serve(options.bundle, options.host, options.port, options.threads)


COMMANDS: Mapping[str, Command] = {
    "demo": Command(
        "serve a page for trying out a bundle; it explains each answer",
        (f"{PROG} demo bundle", f"{PROG} demo bundle --port 8080"),
        declare,
        run,
    ),
}
