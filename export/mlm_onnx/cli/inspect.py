"""`python -m mlm_onnx info`, and the lines that `convert` prints too."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_onnx.bundle.layout import Json
from mlm_onnx.cli.parser import PROG, Command
from mlm_onnx.cli.show import print_json

if TYPE_CHECKING:
    from mlm_onnx.bundle.read import Bundle


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `convert` wrote")
    parser.add_argument("--json", action="store_true", help="print the manifest")


def run(options: argparse.Namespace) -> None:
    from mlm_onnx.bundle.layout import MANIFEST, BundleError
    from mlm_onnx.bundle.read import open_bundle

    bundle = open_bundle(options.bundle)
    if options.json:
        print_json(bundle.manifest)
        return
    try:
        _print_info(options.bundle, bundle)
    except (AttributeError, KeyError, TypeError) as error:
        raise BundleError(f"{options.bundle}/{MANIFEST} is incomplete: {error}") from None


def _print_info(path: Path, bundle: Bundle) -> None:
    manifest = bundle.manifest
    origin, parity = manifest["origin"], manifest["parity"]
    print(f"{path}: {manifest['task']}, {manifest['dtype']}, format {manifest['format']}; all hashes match")
    print(f"from      preset {origin['preset']}, step {origin['step']}, run {origin['run']}")
    if labels := manifest.get("labels"):
        print(f"labels    {', '.join(labels[:20])}{', …' if len(labels) > 20 else ''}")
    print(f"mask      {bundle.special.mask}")
    print(f"limits    {bundle.limits.max_length} tokens, {bundle.limits.max_characters} characters a text")
    print(f"parity    largest difference from JAX {parity['fp32']['max_difference']:.1e} in float32 logits")
    if manifest["dtype"] == "int8":
        print(f"          {int8_line(parity['int8'])}")
        if line := saturation_line(manifest["int8"]):
            print(f"          {line}")
    if calibration := parity.get("calibration"):
        print(f"          {calibration_line(calibration)}")
    if memory := _memory(bundle):
        print(f"memory    {memory}")
    for name, graph in manifest["graphs"].items():
        print(f"graph     {name}: {_ports(graph['inputs'])} → {_ports(graph['outputs'])}")
    for name, file in manifest["files"].items():
        print(f"file      {name}  {size_text(file['size'])}")


def _memory(bundle: Bundle) -> str:
    """Return how much memory this process uses after an answer from the bundle; empty except on Linux."""
    import mlm_onnx

    getattr(mlm_onnx, bundle.files.predictor)(bundle).once()
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    status = dict(line.split(":", 1) for line in lines)
    resident, mapped = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "RssFile"))
    return f"{size_text(resident)} resident after an answer, of which {size_text(mapped)} are mapped files"


def int8_line(parity: Mapping[str, float]) -> str:
    size = parity["logit_std"] if "logit_std" in parity else parity["logit_rms"]
    share, what = parity["rms_difference"] / max(size, 1e-9), "spread" if "logit_std" in parity else "size"
    changed = 1 - parity["top1_agreement"]
    return f"int8 changes logits by {share:.1%} of their {what}, and {changed:.1%} of the first answers to random texts"


def saturation_line(int8: Json) -> str:
    """Return how answers change on processors without VNNI; empty if the manifest does not record it."""
    if int8["weight_bits"] < 8:
        return "7-bit weights: exact on every processor"
    if not (study := int8.get("saturation")):
        return ""
    changed = 1 - study["top1_agreement"]
    line = f"without VNNI {study['pairs']:.2%} of the sums of two products are cut off, which changes {changed:.1%} of "
    line += f"the first answers ({study['tokens']} tokens, {study['on']})"
    return f"{line}; for such processors convert with --reduce-range" if study["matters"] else line


def calibration_line(calibration: Json) -> str:
    kept = calibration["kept_in_fp32"]
    if "metric" in calibration:
        score, same = calibration["score"], calibration["as_jax"]
        line = f"on {calibration['examples']} examples of {calibration['file']}: {calibration['metric']} "
        line += f"{score['int8']:.4f}, {score['fp32']:.4f} in float32; {same['int8']:.1%} of the answers are JAX's"
        return f"{line}; kept in float32: {', '.join(kept)}" if kept else line
    accuracy = calibration["accuracy"]
    line = f"on {calibration['tokens']} hidden tokens of {calibration['file']}: accuracy {accuracy['int8']:.1%}, "
    line += f"{accuracy['fp32']:.1%} in float32; {calibration['top1_agreement']:.1%} of the first answers are the same"
    return f"{line}; kept in float32: {', '.join(kept)}" if kept else line


def _ports(ports: Sequence[Json]) -> str:
    return ", ".join(f"{port['name']} {port['dtype']}[{', '.join(map(str, port['shape']))}]" for port in ports)


def size_text(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


COMMANDS: Mapping[str, Command] = {
    "info": Command(
        "print what a bundle contains, after checking all its files",
        (f"{PROG} info bundle", f"{PROG} info bundle --json"),
        declare,
        run,
    ),
}
