"""The commands that answer with a fine-tuned model: classify, tag, answer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlm_onnx.bundle.layout import ANSWER, CLASSIFY, TAG, Json
from mlm_onnx.cli.answer import declare_query
from mlm_onnx.cli.files import Column, answer_file, wants_file
from mlm_onnx.cli.parser import PROG, Command, UsageError, at_least_one, in_utf8
from mlm_onnx.cli.show import one_line, print_json

if TYPE_CHECKING:
    from mlm_onnx.answer.questions import Answer
    from mlm_onnx.answer.tasks import Classified, Classify, Tag, Text


def declare_classify(parser: argparse.ArgumentParser) -> None:
    declare_query(parser, "a text to judge", column="the one learned, text or the only one")
    parser.add_argument(
        "--pair",
        type=in_utf8,
        metavar="TEXT",
        help="the second text; with --file, its column (default: the one learned, or pair)",
    )
    parser.add_argument("--top-k", type=at_least_one, metavar="N", help="labels to list (default: all)")


def classify(options: argparse.Namespace) -> None:
    predictor: Classify = _load(options, CLASSIFY)
    if wants_file(options):
        text, pair, label = predictor.head.columns
        columns = [Column("--text", options.text, text, "text", only=True)]
        if predictor.head.pair or options.pair is not None:
            columns.append(Column("--pair", options.pair, pair, "pair"))

        def answer(rows: list[tuple[str, ...]]) -> list[Json]:
            texts: list[Text] = [text for (text,) in rows] if len(columns) == 1 else [(a, b) for a, b in rows]
            return [_without(found, "text", "pair") for found in predictor(texts, options.top_k)]

        answer_file(options, columns, answer, label)
        return
    _check_text(options.text_given)
    text = options.text_given if options.pair is None else (options.text_given, options.pair)
    found = predictor(text, options.top_k)
    if options.json:
        print_json(found)
        return
    print(*_lines(found), sep="\n")


def _lines(found: Classified) -> list[str]:
    if "value" in found:
        return [f"{found['value']:.4f}"]
    first = found.get("label", ", ".join(found.get("predicted", ())) or "none of the labels")
    labels = found.get("labels", [])
    width = max(len(one_line(each["label"])) for each in labels)
    return [first, *(f"  {one_line(each['label']):<{width}}  {each['probability']:7.2%}" for each in labels)]


def declare_tag(parser: argparse.ArgumentParser) -> None:
    declare_query(parser, "a text with entities")


def tag(options: argparse.Namespace) -> None:
    predictor: Tag = _load(options, TAG)
    if wants_file(options):

        def answer(rows: list[tuple[str, ...]]) -> list[Json]:
            return [_without(found, "text") for found in predictor([text for (text,) in rows])]

        answer_file(options, [Column("--text", options.text, "", "text", only=True)], answer)
        return
    _check_text(options.text_given)
    found = predictor(options.text_given)
    if options.json:
        print_json(found)
        return
    if not found["entities"]:
        print("no entity")
    for each in found["entities"]:
        print(
            f"{each['start']:>5}–{each['end']:<5} {each['label']}  {each['probability']:7.2%}  {one_line(each['text'])}"
        )


def declare_answer(parser: argparse.ArgumentParser) -> None:
    declare_query(parser, "the context in which the answer stands", column="the one learned, or context")
    parser.add_argument(
        "--question",
        type=in_utf8,
        metavar="TEXT",
        help="what is asked; with --file, its column (default: the one learned, or question)",
    )


def answer(options: argparse.Namespace) -> None:
    if not wants_file(options) and options.question is None:
        raise UsageError("give the --question that is asked about the TEXT")
    predictor: Answer = _load(options, ANSWER)
    if options.file is not None:
        text, pair, label = predictor.head.columns
        columns = [
            Column("--text", options.text, text, "context"),
            Column("--question", options.question, pair, "question"),
        ]

        def answers(rows: list[tuple[str, ...]]) -> list[Json]:
            found = predictor([question for _, question in rows], [context for context, _ in rows])
            return [_without(each, "question") for each in found]

        answer_file(options, columns, answers, label)
        return
    _check_text(options.text_given)
    found = predictor(options.question, options.text_given)
    if options.json:
        print_json(found)
        return
    print("no answer" if found["answer"] is None else one_line(found["answer"]))
    where = "" if found["start"] is None else f"  {found['start']}–{found['end']}"
    print(f"  {found['probability']:.2%}{where}")


def _load(options: argparse.Namespace, task: str) -> Any:  # Any: the predictor of that task
    """Return the predictor, kept alive by the options so that answers are printed before it is torn down.

    The bundle is opened first, so that its weights are hashed while numpy and onnxruntime are imported.
    """
    import mlm_onnx
    from mlm_onnx.bundle.read import opened

    bundle = opened(options.bundle, task)
    options.predictor = getattr(mlm_onnx, bundle.files.predictor)(bundle, options.threads)
    return options.predictor


def _check_text(text: str) -> None:
    if not text.strip():
        raise UsageError("the text is empty")


def _without(found: Mapping[str, object], *names: str) -> Json:
    return {name: value for name, value in found.items() if name not in names}


COMMANDS: Mapping[str, Command] = {
    "classify": Command(
        "print the label that a fine-tuned model gives a text",
        (
            f'{PROG} classify bundle "A fine film."',
            f"{PROG} classify bundle --file in.csv --text review --out out.jsonl",
        ),
        declare_classify,
        classify,
    ),
    "answer": Command(
        "print the answer that a fine-tuned model finds to a question",
        (
            f'{PROG} answer bundle "Paris is in France." --question "Where?"',
            f"{PROG} answer bundle --file asked.jsonl --out out.jsonl",
        ),
        declare_answer,
        answer,
    ),
    "tag": Command(
        "print the entities that a fine-tuned model finds in a text",
        (
            f'{PROG} tag bundle "Angela Merkel visited Paris."',
            f"{PROG} tag bundle --file posts.jsonl --out out.jsonl",
        ),
        declare_tag,
        tag,
    ),
}
