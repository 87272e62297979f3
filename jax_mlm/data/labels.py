"""Labelled examples of CSV, TSV, JSON lines and Parquet: columns by name, labels as strings, errors with their line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from jax_mlm.data.rows import missing_column, records, sound, text_field
from jax_mlm.errors import UserError, nearest

Problem = Literal["single", "multi", "regression"]
Label = str | tuple[str, ...] | None
"""One label, several, or none that is known; a number of regression is the string that stands in the file."""
SEVERAL = "|"
"""Separates several labels in a string."""
TEXT, LABEL = "text", "label"
"""The columns that are read where no option names others."""


class Span(NamedTuple):
    """A labelled part of a text: `text[start:end]`, in code points."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Example:
    """A text, and what is known of it."""

    where: str
    """File and line, for messages."""
    text: str
    pair: str | None = None
    """The second text, where two are judged together."""
    label: Label = None
    spans: tuple[Span, ...] | None = None
    """Its entities, in order and without overlap; None where they are not known."""
    words: tuple[tuple[int, int], ...] = ()
    """Where each word of a CoNLL file stands in the text."""
    answers: tuple[tuple[int, int], ...] | None = None
    """Where the answers to the question `pair` stand in the text; empty if it has none, None if they are not known."""
    row: Mapping[str, object] | None = None
    """The fields of the file, for predictions to echo."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns; empty ones are found by their usual names."""

    text: str = ""
    pair: str = ""
    label: str = ""


def read_classified(path: Path, columns: Columns, unlabelled: bool = False) -> tuple[list[Example], Columns]:
    """Return the examples of a file with a label for each text, and the columns that they stand in.

    `unlabelled` allows the label's column to be missing, and its cells to be empty.

    Raises:
        UserError: the file is not readable, lacks a column, or has a text or label that is not text; names the line.
    """
    examples: list[Example] = []
    for where, fields in records(path, columns.text or columns.label or TEXT):
        if not examples:
            columns = _found(path, columns, list(fields), unlabelled)
        text = text_field(where, fields, columns.text)
        pair = text_field(where, fields, columns.pair) if columns.pair else None
        label = _label(where, columns.label, fields.get(columns.label)) if columns.label else None
        examples.append(Example(where, text, pair, label, row=fields))
    if not examples:
        raise UserError(f"{path}: there is no example in this file")
    return examples, columns


def _found(path: Path, columns: Columns, names: Sequence[str], unlabelled: bool) -> Columns:
    """Return the columns by their names in the file; a UserError names the nearest one where there is none."""
    for option, name in (("text", columns.text), ("pair", columns.pair), ("label", columns.label)):
        if name and name not in names and not (option == "label" and unlabelled):
            raise UserError(missing_column(path, option, name, names))
    named = [name for name in (columns.text, columns.pair, columns.label) if name]
    if len(set(named)) < len(named):
        raise UserError(f"--text, --pair and --label must name different columns, not {', '.join(named)}")
    label = columns.label or LABEL
    if label not in names:
        if not unlabelled:
            raise UserError(missing_column(path, "label", label, names))
        label = ""
    others = [name for name in names if name not in (label, columns.pair)]
    text = columns.text or (TEXT if TEXT in names else others[0] if len(others) == 1 else "")
    if not text:
        raise UserError(missing_column(path, "text", TEXT, names))
    return Columns(text, columns.pair, label)


def _label(where: str, name: str, value: object) -> Label:
    """Return a label as a string: JSON's numbers and truth values as they are written there."""
    match value:
        case None:
            return None
        case str():
            return sound(value, where).strip() or None
        case bool():
            return "true" if value else "false"
        case int() | float():
            return None if value != value else str(value)  # NaN stands for what is missing
        case list():
            wrong = [each for each in value if not isinstance(each, str | int)]
            if wrong:
                kind = "null" if wrong[0] is None else type(wrong[0]).__name__
                raise UserError(f"{where}: the field {name!r} holds a list with {kind}, which is not a label")
            parts = (_label(where, name, each) for each in value)
            return tuple(dict.fromkeys(str(part) for part in parts if part is not None))
    raise UserError(f"{where}: the field {name!r} holds {type(value).__name__}, which is not a label")


# ---- what is to be learned -----------------------------------------------------------------------


def problem_of(examples: Sequence[Example]) -> Problem:
    """Return what the labels call for: lists are several labels, numbers with a fraction regression."""
    labels = [example.label for example in examples if example.label is not None]
    if any(isinstance(label, tuple) for label in labels):
        return "multi"
    numbers = [_number(label) for label in labels if isinstance(label, str)]
    if numbers and all(map(math.isfinite, numbers)) and any(number != int(number) for number in numbers):
        return "regression"
    return "single"


def _number(label: Label) -> float:
    """Return the number that a label writes; NaN if it writes none."""
    try:
        return float(label) if isinstance(label, str) else math.nan
    except ValueError:
        return math.nan


def number_of(example: Example) -> float:
    """Return the number to predict; a UserError where the label is not one."""
    number = _number(example.label)
    if not math.isfinite(number):
        raise UserError(f"{example.where}: the label {example.label!r} is not a number, as --problem regression needs")
    return number


def several(label: Label) -> tuple[str, ...]:
    """Return the labels of an example, which a string separates by `SEVERAL`."""
    if isinstance(label, str):
        return tuple(dict.fromkeys(part for each in label.split(SEVERAL) if (part := each.strip())))
    return label or ()


def labels_of(examples: Sequence[Example], problem: Problem) -> tuple[str, ...]:
    """Return the different labels, sorted; a UserError if there is nothing to tell apart, or an example has none."""
    found: set[str] = set()
    for example in examples:
        if problem == "regression":
            found.add(str(number_of(example)))
        elif problem == "single":
            found.add(one_label(example))
        else:
            found.update(several(example.label))
    least = 1 if problem == "multi" else 2
    if len(found) < least:
        what = f"every example has the label {found.pop()!r}" if found else "no example has a label"
        raise UserError(f"{examples[0].where}: from here on, {what}: there is nothing to tell apart")
    return () if problem == "regression" else tuple(sorted(found))


def one_label(example: Example) -> str:
    """Return the only label of an example; a UserError where there is none, or are several."""
    if isinstance(example.label, tuple):
        raise UserError(f"{example.where}: several labels, where --problem single needs one")
    if example.label is None:
        raise UserError(f"{example.where}: the label is missing")
    return example.label


def check_labels(
    examples: Sequence[Example], labels: Sequence[str], problem: Problem, unlabelled: bool = False
) -> None:
    """Refuse a label that the model does not have, by its line, or one that is missing unless `unlabelled`."""
    known = set(labels)
    for example in examples:
        if example.label is None:
            if unlabelled or problem == "multi":
                continue
            raise UserError(f"{example.where}: the label is missing")
        if problem == "regression":
            number_of(example)
            continue
        for label in (one_label(example),) if problem == "single" else several(example.label):
            if label not in known:
                shown = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
                raise UserError(
                    f"{example.where}: the label {label!r} is not one of those learned: {shown}{nearest(label, labels)}"
                )
