"""`python -m mlm_onnx convert`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from mlm_onnx.bundle.layout import LAYOUTS, TASKS
from mlm_onnx.cli.inspect import calibration_line, int8_line, saturation_line, size_text
from mlm_onnx.cli.parser import PROG, Command, UsageError


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_directory", metavar="RUN", type=Path, help="run directory that `python -m jax_mlm.train` wrote"
    )
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=Path, help="folder to write; replaces a bundle that is already there"
    )
    parser.add_argument(
        "--dtype", choices=("int8", "fp32"), default="int8", help="how weights are stored (default: int8)"
    )
    layouts = "; ".join(f"{layout}: {text}" for layout, text in LAYOUTS.items())
    parser.add_argument("--for", choices=tuple(LAYOUTS), default="predictor", dest="layout", help=layouts)
    int8, pages = parser.add_argument_group("int8"), parser.add_argument_group("pages and demo")
    pages.add_argument(
        "--web-runtime", type=Path, metavar="DIR", help="node_modules to use for --for web instead of fetching with npm"
    )
    int8.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="text on which to measure the loss from int8 and keep it small"
    )
    int8.add_argument("--reduce-range", action="store_true", help="7-bit weights, for processors without VNNI")
    pages.add_argument("--with-attention", action="store_true", help="add what each token attends to, for the demo")
    pages.add_argument(
        "--example",
        action="append",
        default=[],
        metavar="TEXT",
        help="an example sentence for pages to offer; repeatable",
    )


def run(options: argparse.Namespace) -> None:
    try:
        from jax_mlm.errors import UserError
        from mlm_onnx.convert import Request, convert
    except ModuleNotFoundError as error:
        needed = (error.name or "").split(".")[0]
        raise UsageError(f"convert needs {needed}, which is not installed: pip install 'mlm-onnx[convert]'") from None
    request = Request(
        dtype=options.dtype,
        layout=options.layout,
        calibration=options.calibrate,
        reduce_range=options.reduce_range,
        with_attention=options.with_attention,
        web_runtime=options.web_runtime,
        examples=options.example,
    )
    try:
        manifest = convert(options.run_directory, options.bundle, request)
    except UserError as error:
        raise UsageError(str(error)) from None
    size = sum(file["size"] for file in manifest["files"].values())
    parity, origin = manifest["parity"], manifest["origin"]
    source = f"step {origin['step']} of {options.run_directory}"
    print(f"wrote {options.bundle}: {manifest['dtype']}, {size_text(size)}, {source}")
    print(f"largest difference from JAX: {parity['fp32']['max_difference']:.1e} in float32 logits")
    if manifest["dtype"] == "int8":
        print(int8_line(parity["int8"]))
        if line := saturation_line(manifest["int8"]):
            print(line)
    if calibration := parity.get("calibration"):
        print(calibration_line(calibration))
    if options.layout == "space":
        print(f"next: python {options.bundle / 'app.py'}, or push {options.bundle} to a Space")
    elif options.layout == "web":
        print(f"next: python -m http.server --directory {options.bundle}, then open http://localhost:8000")
    else:
        command = TASKS[manifest["task"]].command
        text = f"text with {manifest['tokens']['mask']['text']}" if command == "fill" else "a text"
        print(f'next: {PROG} {command} {options.bundle} "{text}"')


COMMANDS: Mapping[str, Command] = {
    "convert": Command(
        "turn a training run into a bundle",
        (f"{PROG} convert runs/sentence bundle", f"{PROG} convert runs/small bundle --for hub"),
        declare,
        run,
    ),
}
