"""The commands that query a bundle: fill, explain, score, embed."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlm_onnx.bundle.layout import Json
from mlm_onnx.cli.files import Column, answer_file, declare_file, wants_file
from mlm_onnx.cli.parser import PROG, Command, at_least_one, in_utf8
from mlm_onnx.cli.show import one_line, print_json

if TYPE_CHECKING:
    from mlm_onnx.answer.predictor import FillMask


def declare_query(
    parser: argparse.ArgumentParser, text: str, files: bool = True, column: str = "text, or the only one"
) -> None:
    """Add the options of a query; `files` also those that answer for whole files, usually for this `column`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `convert` wrote")
    if files:
        parser.add_argument("text_given", nargs="?", metavar="TEXT", type=in_utf8, help=text)
        declare_file(parser, column)
    else:
        parser.add_argument("text", metavar="TEXT", type=in_utf8, help=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--threads", type=at_least_one, metavar="N", help="threads to compute with (default: one per core, up to 4)"
    )


def comma_separated(text: str) -> list[str]:
    """Parse words separated by commas, as a line of CSV: a word with a comma in it stands in double quotes."""
    try:
        words = next(csv.reader([in_utf8(text)], skipinitialspace=True, strict=True), [])
        return [word for word in words if word.strip()]
    except csv.Error:
        raise argparse.ArgumentTypeError(
            f'{text}: a double quote begins a word that is not closed; the quote itself is written """"'
        ) from None


def declare_fill(parser: argparse.ArgumentParser) -> None:
    declare_query(parser, "a text with the model's mask token where a word is missing")
    parser.add_argument("--top-k", type=at_least_one, metavar="N", help="candidates for each mask (default: 5)")
    parser.add_argument(
        "--targets",
        type=comma_separated,
        metavar="A,B",
        help="consider only these words; one with a comma in it stands in double quotes: '\"1,000\",many'",
    )
    _declare_first_piece(parser)
    parser.add_argument(
        "--joint", action="store_true", help="also fill all masks together: pseudo-jointly, by a beam over fill orders"
    )


def _declare_first_piece(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--first-piece", action="store_true", help="replace a target that is not one token by its first piece"
    )


def _load(options: argparse.Namespace) -> FillMask:
    """Return the predictor, kept alive by the options so that answers are printed before it is torn down.

    The bundle is opened first, so that its weights are hashed while numpy and onnxruntime are imported.
    """
    from mlm_onnx.bundle import open_bundle

    bundle = open_bundle(options.bundle, full=False, ahead=True)
    from mlm_onnx.answer.predictor import FillMask

    options.fill = FillMask(bundle, options.threads)
    return options.fill


def fill(options: argparse.Namespace) -> None:
    how = {name: getattr(options, name) for name in ("top_k", "targets", "joint", "first_piece")}
    if wants_file(options):
        predictor = _load(options)

        def answers(rows: list[tuple[str, ...]]) -> list[Json]:
            found = predictor([text for (text,) in rows], **how)
            return [{name: value for name, value in each.items() if name != "text"} for each in found]

        answer_file(options, [Column("--text", options.text, "", "text", only=True)], answers)
        return
    answer = _load(options)(options.text_given, **how)
    if options.json:
        print_json(answer)
        return
    for mask in answer["masks"]:
        print(mask["candidates"][0]["text"])
        width = max(len(one_line(candidate["token"])) for candidate in mask["candidates"])
        for candidate in mask["candidates"]:
            print(f"  {one_line(candidate['token']):<{width}}  {candidate['probability']:7.2%}{_pieces_of(candidate)}")
    if options.joint:
        print("together (pseudo-joint, natural logarithm)")
        for filling in answer["pseudo_joint"]:
            print(f"  {filling['logprob']:9.3f}  {filling['text']}")


def _pieces_of(answer: Json) -> str:
    """Return a note of the words of which a token is only the first piece."""
    words = answer.get("first_piece_of")
    return f"  (first piece of {', '.join(words)})" if words else ""


def declare_explain(parser: argparse.ArgumentParser) -> None:
    declare_query(parser, "a text with the model's mask token where a word is missing", files=False)
    parser.add_argument("--target", type=in_utf8, metavar="WORD", help="explain this word (default: the likeliest)")
    _declare_first_piece(parser)


def explain(options: argparse.Namespace) -> None:
    answer = _load(options).explain(options.text, options.target, first_piece=options.first_piece)
    if options.json:
        print_json(answer)
        return
    for mask in answer["masks"]:
        print(f"{one_line(mask['token'])}  {mask['probability']:.2%}{_pieces_of(mask)}; without each other word:")
        width = max((len(word["word"]) for word in mask["words"]), default=0)
        for word in sorted(mask["words"], key=lambda word: -word["effect"]):
            instead = f"  {one_line(word['instead'])} instead" if word["instead"] != mask["token"] else ""
            print(f"  {word['word']:<{width}}  {word['probability']:7.2%}  {-word['effect']:+8.3f}{instead}")


def declare_score(parser: argparse.ArgumentParser) -> None:
    declare_query(parser, "a sentence without a mask", files=False)
    parser.add_argument(
        "--within-word",
        action="store_true",
        help="hide the later tokens of the same word with each token, since they give it away (PLL-word-l2r)",
    )


def score(options: argparse.Namespace) -> None:
    answer = _load(options).score(options.text, within_word=options.within_word)
    if options.json:
        print_json(answer)
        return
    unknown = f", {answer['unknown']} unknown" if answer["unknown"] else ""
    print(f"pseudo-log-likelihood {answer['score']:.3f}, perplexity {answer['perplexity']:.2f}{unknown}")
    width = max(len(one_line(token["token"])) for token in answer["tokens"])
    for token in answer["tokens"]:
        print(f"  {one_line(token['token']):<{width}}  {token['logprob']:8.3f}")


def declare_embed(parser: argparse.ArgumentParser) -> None:
    declare_query(parser, "a text of any length", files=False)


def embed(options: argparse.Namespace) -> None:
    numbers = _load(options).embed(options.text).tolist()
    if options.json:
        print_json({"text": options.text, "embedding": numbers})
        return
    print(*(f"{number:.6g}" for number in numbers))


COMMANDS: Mapping[str, Command] = {
    "fill": Command(
        "print the likeliest words at each mask of a text",
        (
            f'{PROG} fill bundle "This model [MASK] a super"',
            f'{PROG} fill bundle "a [MASK] day" --targets good,bad --json',
        ),
        declare_fill,
        fill,
    ),
    "explain": Command(
        "show which words an answer depends on, by hiding each in turn",
        (
            f'{PROG} explain bundle "This model [MASK] a super"',
            f'{PROG} explain bundle "a [MASK] day" --target good --json',
        ),
        declare_explain,
        explain,
    ),
    "score": Command(
        "print how likely a sentence is (pseudo-log-likelihood)",
        (f'{PROG} score bundle "This model creates a super"', f'{PROG} score bundle "a good day" --within-word --json'),
        declare_score,
        score,
    ),
    "embed": Command(
        "print a text as a vector, the mean of its hidden states",
        (f'{PROG} embed bundle "This model creates a super"', f'{PROG} embed bundle "a good day" --json'),
        declare_embed,
        embed,
    ),
}
