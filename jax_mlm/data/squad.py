"""Questions about contexts, with answers by their offsets: SQuAD's JSON, or a question in each row of a table.

SQuAD 1.1 and 2.0 nest questions in paragraphs, and paragraphs in articles. A row of CSV, TSV, JSON lines or Parquet has
the columns question, context, answer and answer_start; JSON may give several answers, as SQuAD or its data set on the
hub writes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jax_mlm.data.labels import Columns, Example
from jax_mlm.data.rows import missing_column, records, text_field
from jax_mlm.errors import UserError

CONTEXT, QUESTION, ANSWERS, START = "context", "question", ("answer", "answers"), "answer_start"
"""The columns that are read where no option names others."""
NESTED = Columns(CONTEXT, QUESTION, "answers")
"""Those of a question of SQuAD, once its context has been added."""


class _Question(NamedTuple):
    where: str
    fields: Mapping[str, object]
    nested: bool
    """Whether it comes from SQuAD's articles, whose names are fixed."""


def read_questions(path: Path, columns: Columns, unlabelled: bool = False) -> list[Example]:
    """Return the questions of a file with their contexts and answers.

    `columns` names those of the context (`text`), the question (`pair`) and the answer (`label`) where they have other
    names than the usual ones. `unlabelled` allows a file without answers: where no question has one, none is known.

    Raises:
        UserError: the file is not readable, or an answer is not where `answer_start` puts it; names line or question.
    """
    examples: list[Example] = []
    found: Columns | None = None
    for where, fields, nested in _questions(path, columns.text or CONTEXT):
        if not nested and found is None:
            found = _found(path, columns, list(fields), unlabelled)
        examples.append(_example(where, fields, found if found and not nested else NESTED, unlabelled))
    if not examples:
        raise UserError(f"{path}: there is no question in this file")
    if unlabelled and not any(
        e.answers or _is_impossible(e.where, (e.row or {}).get("is_impossible")) for e in examples
    ):
        examples = [replace(example, answers=None) for example in examples]
    return examples


def _example(where: str, fields: Mapping[str, object], columns: Columns, unlabelled: bool) -> Example:
    context, question = text_field(where, fields, columns.text), text_field(where, fields, columns.pair)
    if context != fields[columns.text]:
        raise UserError(f"{where}: the context holds half of an escaped pair, so that offsets would shift")
    impossible = _is_impossible(where, fields.get("is_impossible"))
    there = [name for name in (columns.label, *ANSWERS) if name in fields]
    label = next((name for name in there if fields[name] is not None), next(iter(there), ""))
    answers = _answers(where, context, fields, label) if label else () if impossible else None
    if answers is None and not unlabelled:
        raise UserError(f"{where}: no field {columns.label or ANSWERS[0]!r} with the answers")
    if impossible and answers:
        raise UserError(f"{where}: is_impossible, though it has an answer: remove one of the two")
    if impossible is False and not answers:
        if not unlabelled:
            raise UserError(f"{where}: is_impossible is false, though there is no answer: remove one of the two")
        answers = None
    return Example(where, context, question, answers=answers, row=fields)


# ---- files to rows -------------------------------------------------------------------------------


def _questions(path: Path, wanted: str) -> Iterator[_Question]:
    """Yield each question of a file as a row, those of SQuAD's articles with their context."""
    for where, fields in records(path, wanted):
        if isinstance(fields.get("data"), list) and CONTEXT not in fields:
            for number, element in enumerate(_list(where, fields, "data")):
                yield from _of_element(path, f"{path}, data[{number}]", element)
        else:
            yield from _of_element(path, where, fields)


def _of_element(path: Path, where: str, element: object) -> Iterator[_Question]:
    if not isinstance(element, dict):
        raise UserError(f"{where}: {type(element).__name__}, where an article or a question was expected")
    if "paragraphs" not in element:
        yield _Question(where, element, False)
        return
    for i, paragraph in enumerate(_list(where, element, "paragraphs")):
        place = f"{where}.paragraphs[{i}]"
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get(CONTEXT), str):
            raise UserError(f"{place}: a paragraph needs the field {CONTEXT!r} with a text, and qas with its questions")
        for j, question in enumerate(_list(place, paragraph, "qas")):
            if not isinstance(question, dict):
                raise UserError(f"{place}.qas[{j}]: {type(question).__name__}, where a question was expected")
            named = f"{path}, question {question['id']}" if question.get("id") is not None else f"{place}.qas[{j}]"
            yield _Question(named, {**question, CONTEXT: paragraph[CONTEXT]}, True)


def _list(where: str, fields: Mapping[str, object], name: str) -> Sequence[object]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise UserError(f"{where}: the field {name!r} must be a list")
    return value


def _found(path: Path, given: Columns, names: Sequence[str], unlabelled: bool) -> Columns:
    """Return the columns by their names in the file; a UserError names the nearest one where there is none."""
    text, pair = given.text or CONTEXT, given.pair or QUESTION
    for option, name, what in (("text", text, CONTEXT), ("pair", pair, QUESTION)):
        if name not in names:
            raise UserError(missing_column(path, option, name, names, what))
    label = next((name for name in (given.label, *ANSWERS) if name in names), "")
    if (label == "" or given.label not in ("", label)) and not unlabelled:
        raise UserError(missing_column(path, "label", given.label or ANSWERS[0], names, "answer"))
    if len({text, pair, label}) < 3:
        raise UserError(f"--text, --pair and --label must name different columns, not {text}, {pair}, {label}")
    return Columns(text, pair, label)


# ---- rows to answers -----------------------------------------------------------------------------


def _is_impossible(where: str, value: object) -> bool | None:
    """Return what SQuAD 2.0 says of a question; None where nothing is said."""
    match value:
        case None | "":
            return None
        case bool():
            return value
        case str() if value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
    raise UserError(f"{where}: is_impossible is {str(value)[:40]!r}, where true or false was expected")


def _answers(where: str, context: str, fields: Mapping[str, object], label: str) -> tuple[tuple[int, int], ...]:
    """Return where the answers stand, without empty ones."""
    starts = fields.get(f"{label}_start", fields.get(START))
    spans = (_span(where, context, *each) for each in _given(where, label, fields[label], starts))
    return tuple(span for span in spans if span is not None)


def _given(where: str, label: str, value: object, starts: object) -> Iterator[tuple[object, object]]:
    """Yield the text and the start of each answer."""
    match value:
        case None:
            return
        case str():
            yield value, starts
        case {"text": texts, **others}:
            yield from _given(where, label, texts, others.get(START))
        case list() if all(isinstance(each, dict) for each in value):
            yield from ((each.get("text"), each.get(START)) for each in value)
        case list() if all(isinstance(each, str) for each in value):
            yield from itertools.zip_longest(value, starts if isinstance(starts, list) else [])
        case float() if value != value:  # NaN stands for what is missing
            return
        case _:
            raise UserError(f"{where}: the field {label!r} holds {str(value)[:60]!r}, which is not a text to find")


def _span(where: str, context: str, text: object, start: object) -> tuple[int, int] | None:
    """Return where an answer stands, and None for an empty one; a UserError where the context has something else."""
    if not isinstance(text, str):
        raise UserError(f"{where}: an answer has the text {str(text)[:60]!r}: write it as text")
    if not text.strip():
        return None
    at = _whole_number(start)
    if at is None:
        raise UserError(
            f"{where}: the answer {text[:60]!r} has {START} {str(start)[:20]!r}: give the number of characters before "
            "it in the context"
        )
    there = context[at : at + len(text)] if at >= 0 else ""
    if there != text:
        first = context.find(text)
        really = f"stands at {first}" if first >= 0 else "does not occur in it"
        raise UserError(
            f"{where}: at {START} {at} the context has {there[:60]!r}, not the answer {text[:60]!r}, which {really} "
            "(counted in characters)"
        )
    return at, at + len(text)


def _whole_number(value: object) -> int | None:
    """Return a position as JSON or a table writes it, 12.0 included; None for anything else."""
    try:
        number = float(value) if isinstance(value, str | float | int) and not isinstance(value, bool) else 0.5
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
