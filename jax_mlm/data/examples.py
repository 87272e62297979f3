"""The examples that a fine-tuning reads: to learn, to choose among checkpoints, and to report on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from jax_mlm.data.batches import split_documents
from jax_mlm.data.conll import read_tagged
from jax_mlm.data.labels import Columns, Example, read_classified
from jax_mlm.data.squad import read_questions
from jax_mlm.errors import UserError

Kind = Literal["classify", "tag", "answer"]
CHOOSING = 0.05
"""Part of the training file that chooses among checkpoints, where no file is given for it."""


class Examples(NamedTuple):
    """What the options name."""

    train: list[Example]
    choose: list[Example]
    """They choose the checkpoint, and are not learned."""
    report: list[Example]
    """What the figures are reported of; empty where no file was given for it."""
    columns: Columns
    fingerprints: dict[str, str]
    """The SHA-256 of each file, by its option."""
    remarks: tuple[str, ...]


def read_examples(kind: Kind, data: str, valid: str, test: str, columns: Columns) -> Examples:
    """Read the files; without --test, a part of the training file chooses: texts that occur twice are on one side.

    Raises:
        UserError: a file is missing or wrong; see `data/labels.py`, `data/conll.py` and `data/squad.py`.
    """
    train, columns, remarks = read_file(kind, Path(data), columns)
    others = {}
    for option, file in (("--valid", valid), ("--test", test)):
        if file:
            others[option], _, more = read_file(kind, Path(file), columns)
            remarks += more
    files = {"train": data, "valid": valid, "test": test}
    fingerprints = {option: _digest(Path(file)) for option, file in files.items() if file}
    remarks += _repeated(train)
    for option, examples in others.items():
        remarks += _also_learned(option, examples, train)
    if test:
        return Examples(train, others["--valid"], others["--test"], columns, fingerprints, remarks)
    train, choose = split_by_text(train)
    return Examples(train, choose, others.get("--valid", []), columns, fingerprints, remarks)


def read_file(
    kind: Kind, path: Path, columns: Columns, unlabelled: bool = False
) -> tuple[list[Example], Columns, tuple[str, ...]]:
    """Return the examples of a file, the columns they stand in, and remarks."""
    if kind == "tag":
        examples, remarks = read_tagged(path, unlabelled)
        return examples, columns, remarks
    if kind == "answer":
        return read_questions(path, columns, unlabelled), columns, ()
    return *read_classified(path, columns, unlabelled), ()


def split_by_text(examples: Sequence[Example], fraction: float = CHOOSING) -> tuple[list[Example], list[Example]]:
    """Return the examples to learn and those that choose, about `fraction` of the texts, always the same."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        text, pair = _text(example)
        groups[(text, pair if example.answers is None else "")].append(number)  # all questions about one context
    if len(groups) < 2:
        raise UserError(f"{examples[0].where}: all texts are equal: some must be held out, so give at least two")
    members = list(groups.values())
    _, held = split_documents(len(members), fraction, seed=0)
    chosen = {number for group in held.tolist() for number in members[group]}
    return (
        [example for number, example in enumerate(examples) if number not in chosen],
        [example for number, example in enumerate(examples) if number in chosen],
    )


def _text(example: Example) -> tuple[str, str]:
    return example.text.strip(), (example.pair or "").strip()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _repeated(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return remarks about texts that occur more than once, and about those whose labels differ."""
    first: dict[tuple[str, str], Example] = {}
    twice: list[str] = []
    differ: list[str] = []
    for example in examples:
        before = first.setdefault(_text(example), example)
        if before is not example:
            twice.append(example.where)
            if (before.label, before.spans, before.answers) != (example.label, example.spans, example.answers):
                differ.append(f"{example.where}, as {before.where.rsplit(', ', 1)[-1]}")
    found = []
    if twice:
        found.append(f"{len(twice)} texts have occurred before (the first: {twice[0]})")
    if differ:
        found.append(f"{len(differ)} texts have another label than before (the first: {differ[0]})")
    return tuple(found)


def _also_learned(option: str, examples: Sequence[Example], train: Sequence[Example]) -> tuple[str, ...]:
    known = {_text(example) for example in train}
    both = [example.where for example in examples if _text(example) in known]
    return (f"{len(both)} texts of {option} stand in --data as well (the first: {both[0]})",) if both else ()
