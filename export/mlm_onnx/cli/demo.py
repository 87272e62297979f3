"""`python -m mlm_onnx demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_onnx.cli.parser import UsageError, at_least_one

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def _declare_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `convert` wrote")
    parser.add_argument("--port", type=at_least_one, default=7860, help="where the page is served (default: 7860)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 shows the page to the network too (default: this machine alone)"
    )
    parser.add_argument("--threads", type=at_least_one, help="threads to compute with (default: the cores, up to 4)")


def _demo(options: argparse.Namespace) -> None:
    try:
        from mlm_onnx.demo import serve
    except ModuleNotFoundError as error:
        needed = (error.name or "").split(".")[0]
        raise UsageError(f"demo needs {needed}, which is not installed: pip install 'mlm-onnx[demo]'") from None
    serve(options.bundle, options.host, options.port, options.threads)
