"""`python -m mlm_onnx COMMAND`: strings in, one clear line out when something is wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlm_onnx.command_line import PROG, Command, UsageError, at_least_one, command_map, read, versions

if TYPE_CHECKING:
    from mlm_onnx.bundle import Bundle
    from mlm_onnx.predictor import FillMask

# ---- commands ------------------------------------------------------------------------------------


def _declare_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_directory", metavar="RUN", type=Path, help="what `python -m jax_mlm.train` wrote")
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=Path, help="folder to write; a bundle that is there is replaced"
    )
    parser.add_argument(
        "--dtype", choices=("int8", "fp32"), default="int8", help="how weights are stored (default: int8)"
    )
    layouts = {"choices": ("predictor", "hub", "web", "space"), "default": "predictor", "dest": "layout"}
    said = "predictor: for FillMask (default); hub: also for optimum and transformers.js; web: also a page "
    said += "for browsers; space: the demo as a hosted Space"
    parser.add_argument("--for", **layouts, help=said)
    int8, pages = parser.add_argument_group("int8"), parser.add_argument_group("pages and demo")
    pages.add_argument(
        "--web-runtime", type=Path, metavar="DIR", help="node_modules with what --for web otherwise fetches with npm"
    )
    int8.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="text on which to measure what int8 costs, and to keep it small"
    )
    int8.add_argument("--reduce-range", action="store_true", help="7-bit weights: int8 for processors without VNNI")
    pages.add_argument("--with-attention", action="store_true", help="also what each token attends to, for the demo")
    pages.add_argument(
        "--example", action="append", default=[], metavar="TEXT", help="a sentence that pages offer to try; repeatable"
    )


def _convert(options: argparse.Namespace) -> None:
    try:
        from mlm_onnx.convert import convert
    except ModuleNotFoundError as error:
        needed = (error.name or "").split(".")[0]
        raise UsageError(f"convert needs {needed}, which is not installed: pip install 'mlm-onnx[convert]'") from None
    manifest = convert(
        options.run_directory,
        options.bundle,
        options.dtype,
        options.layout,
        options.calibrate,
        options.reduce_range,
        options.web_runtime,
        options.with_attention,
        options.example,
    )
    size = sum(facts["size"] for facts in manifest["files"].values())
    parity, origin = manifest["parity"], manifest["origin"]
    print(
        f"wrote {options.bundle}: {manifest['dtype']}, {_bytes(size)}, step {origin['step']} of {options.run_directory}"
    )
    print(f"largest difference from JAX: {parity['fp32']['max_difference']:.1e} in float32 logits")
    if manifest["dtype"] == "int8":
        print(_int8(parity["int8"]))
        print(_saturation(manifest["int8"]))
    if calibration := parity.get("calibration"):
        print(_calibration(calibration))
    if options.layout == "space":
        print(f"next: python {options.bundle / 'app.py'}, or push {options.bundle} to a Space")
    elif options.layout == "web":
        print(f"next: python -m http.server --directory {options.bundle}, then open http://localhost:8000")
    else:
        print(f'next: {PROG} fill {options.bundle} "text with {manifest["tokens"]["mask"]["text"]}"')


def _declare_query(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `convert` wrote")
    parser.add_argument("text", metavar="TEXT", help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=at_least_one, help="threads to compute with (default: the cores, up to 4)")


def _declare_fill(parser: argparse.ArgumentParser) -> None:
    _declare_query(parser, "a text with the model's mask token where a word is missing")
    parser.add_argument("--top-k", type=at_least_one, metavar="N", help="candidates for each mask (default: 5)")
    parser.add_argument("--targets", metavar="A,B", help="consider only these words")
    _declare_first_piece(parser)
    parser.add_argument(
        "--joint", action="store_true", help="also fill all masks together: pseudo-jointly, by a beam over fill orders"
    )


def _declare_first_piece(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--first-piece", action="store_true", help="a target that is not one token stands for its first piece"
    )


def _load(options: argparse.Namespace) -> FillMask:
    """The predictor, which lives as long as the options: answers are printed before it is taken apart.

    The bundle is opened first: its weights are hashed while numpy and onnxruntime are imported.
    """
    from mlm_onnx.bundle import open_bundle

    bundle = open_bundle(options.bundle, full=False, ahead=True)
    from mlm_onnx.predictor import FillMask

    options.fill = FillMask(bundle, options.threads)
    return options.fill


def _fill(options: argparse.Namespace) -> None:
    targets = None if options.targets is None else [word for word in options.targets.split(",") if word.strip()]
    answer = _load(options)(
        options.text, top_k=options.top_k, targets=targets, joint=options.joint, first_piece=options.first_piece
    )
    if options.json:
        _print_json(answer)
        return
    for mask in answer["masks"]:
        print(mask["candidates"][0]["text"])
        width = max(len(candidate["token"]) for candidate in mask["candidates"])
        for candidate in mask["candidates"]:
            print(f"  {candidate['token']:<{width}}  {candidate['probability']:7.2%}{_pieces_of(candidate)}")
    if options.joint:
        print("together (pseudo-joint, natural logarithm)")
        for filling in answer["pseudo_joint"]:
            print(f"  {filling['logprob']:9.3f}  {filling['text']}")


def _pieces_of(answer: Mapping[str, Any]) -> str:
    """Says which words a token only begins."""
    words = answer.get("first_piece_of")
    return f"  (first piece of {', '.join(words)})" if words else ""


def _declare_explain(parser: argparse.ArgumentParser) -> None:
    _declare_query(parser, "a text with the model's mask token where a word is missing")
    parser.add_argument("--target", metavar="WORD", help="explain this word (default: the likeliest)")
    _declare_first_piece(parser)


def _explain(options: argparse.Namespace) -> None:
    fill = _load(options)
    answer = fill.explain(options.text, options.target, first_piece=options.first_piece)
    if options.json:
        _print_json(answer)
        return
    for mask in answer["masks"]:
        print(f"{mask['token']}  {mask['probability']:.2%}{_pieces_of(mask)}; without each other word:")
        width = max((len(word["word"]) for word in mask["words"]), default=0)
        for word in sorted(mask["words"], key=lambda word: -word["effect"]):
            instead = f"  {word['instead']} instead" if word["instead"] != mask["token"] else ""
            print(f"  {word['word']:<{width}}  {word['probability']:7.2%}  {-word['effect']:+8.3f}{instead}")


def _declare_score(parser: argparse.ArgumentParser) -> None:
    _declare_query(parser, "a whole sentence, without a mask")


def _score(options: argparse.Namespace) -> None:
    answer = _load(options).score(options.text)
    if options.json:
        _print_json(answer)
        return
    print(f"pseudo-log-likelihood {answer['score']:.3f}, perplexity {answer['perplexity']:.2f}")
    width = max(len(token["token"]) for token in answer["tokens"])
    for token in answer["tokens"]:
        print(f"  {token['token']:<{width}}  {token['logprob']:8.3f}")


def _declare_embed(parser: argparse.ArgumentParser) -> None:
    _declare_query(parser, "a text of any length")


def _embed(options: argparse.Namespace) -> None:
    numbers = _load(options).embed(options.text).tolist()
    if options.json:
        _print_json({"text": options.text, "embedding": numbers})
        return
    print(*(f"{number:.6g}" for number in numbers))


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


def _declare_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `convert` wrote")
    parser.add_argument("--json", action="store_true", help="print the manifest")


def _info(options: argparse.Namespace) -> None:
    from mlm_onnx.bundle import MANIFEST, BundleError, open_bundle

    bundle = open_bundle(options.bundle)
    if options.json:
        _print_json(bundle.manifest)
        return
    try:
        _print_info(options.bundle, bundle)
    except (AttributeError, KeyError, TypeError) as error:
        raise BundleError(f"{options.bundle}/{MANIFEST} is incomplete: {error}") from None


def _print_info(path: Path, bundle: Bundle) -> None:
    manifest = bundle.manifest
    origin, parity = manifest["origin"], manifest["parity"]
    print(f"{path}: {manifest['task']}, {manifest['dtype']}, format {manifest['format']}; hashes are right")
    print(f"from      preset {origin['preset']}, step {origin['step']}, run {origin['run']}")
    print(f"mask      {bundle.special.mask}")
    print(f"limits    {bundle.limits.max_length} tokens, {bundle.limits.max_characters} characters a text")
    print(f"parity    largest difference from JAX {parity['fp32']['max_difference']:.1e} in float32 logits")
    if manifest["dtype"] == "int8":
        print(f"          {_int8(parity['int8'])}")
        print(f"          {_saturation(manifest['int8'])}")
    if calibration := parity.get("calibration"):
        print(f"          {_calibration(calibration)}")
    if memory := _memory(path):
        print(f"memory    {memory}")
    for name, graph in manifest["graphs"].items():
        print(f"graph     {name}: {_ports(graph['inputs'])} → {_ports(graph['outputs'])}")
    for name, facts in manifest["files"].items():
        print(f"file      {name}  {_bytes(facts['size'])}")


def _memory(path: Path) -> str:
    """What this process holds in memory once it has answered from the bundle; on Linux, else nothing."""
    from mlm_onnx.predictor import FillMask

    fill = FillMask(path)
    fill(f"a {fill.mask_token}", top_k=1)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return ""
    facts = dict(line.split(":", 1) for line in lines)
    resident, mapped = (int(facts[name].split()[0]) * 1024 for name in ("VmRSS", "RssFile"))
    return f"{_bytes(resident)} resident after an answer, of which {_bytes(mapped)} are mapped files"


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


def _int8(parity: Mapping[str, float]) -> str:
    share = parity["rms_difference"] / max(parity["logit_std"], 1e-9)
    changed = 1 - parity["top1_agreement"]
    return f"int8 changes logits by {share:.1%} of their spread, and {changed:.1%} of the first answers to random texts"


def _saturation(int8: Mapping[str, Any]) -> str:
    """What the bundle asks of a processor, and what one without it makes of the answers."""
    if int8["weight_bits"] < 8:
        return "7-bit weights: right on every processor"
    facts = int8["saturation"]
    changed = 1 - facts["top1_agreement"]
    line = f"without VNNI {facts['pairs']:.2%} of the sums of two products are cut off, which changes {changed:.1%} of "
    line += f"the first answers ({facts['tokens']} tokens, {facts['on']})"
    return f"{line}; for such processors convert with --reduce-range" if facts["matters"] else line


def _calibration(facts: Mapping[str, Any]) -> str:
    accuracy, kept = facts["accuracy"], facts["kept_in_fp32"]
    line = f"on {facts['tokens']} hidden tokens of {facts['file']}: accuracy {accuracy['int8']:.1%}, "
    line += f"{accuracy['fp32']:.1%} in float32; {facts['top1_agreement']:.1%} of the first answers are the same"
    return f"{line}; kept in float32: {', '.join(kept)}" if kept else line


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _ports(ports: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{port['name']} {port['dtype']}[{', '.join(map(str, port['shape']))}]" for port in ports)


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


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
