"""The examples that a fine-tuning reads: to learn, to choose among checkpoints, and to report on."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jax_mlm.data.conll import read_tagged
from jax_mlm.data.labels import Columns, Example, problem_of, read_classified, several
from jax_mlm.data.shuffle import permuted
from jax_mlm.data.squad import read_questions
from jax_mlm.errors import UserError

Kind = Literal["classify", "tag", "answer"]
CHOOSING = 0.05
"""Part of the training file that chooses among checkpoints, where no file is given for it."""
LOOKED_AT = 500
"""Texts in which another is looked for at most: all that it needs in SST-2, and where texts are sequences of a few
letters, so that each has every word of the others, the time grows with their number instead of its square."""


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


CHOSEN_BY = "choosing"
"""The fingerprint of the part of --data that chooses: another version may divide the file otherwise."""


def read_examples(kind: Kind, data: str, valid: str, test: str, columns: Columns, problem: str = "auto") -> Examples:
    """Read the files; without --test, a part of the training file chooses; a text and those in it are on one side.

    `problem` says what labels are, as --problem does.

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
    numbers = (problem_of(train) if problem == "auto" else problem) == "regression"
    train, choose = split_by_text(train, numbers=numbers)
    held_out = "\n".join("\t".join(_text(example)) for example in choose)
    fingerprints[CHOSEN_BY] = hashlib.sha256(held_out.encode("utf-8", "replace")).hexdigest()
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


def split_by_text(
    examples: Sequence[Example], fraction: float = CHOOSING, numbers: bool = False
) -> tuple[list[Example], list[Example]]:
    """Return the examples to learn and those that choose, up to `fraction` of all, always the same.

    A text and those that lie in it are on one side, and so are all questions about a context. Data such as SST-2 give
    each sentence with its phrases, and a model that has learned the phrases knows the sentence. The last example of a
    label or of a type of entity is learned, unless each has its own, or labels are `numbers`.
    """
    keys = [" ".join((text, pair) if e.answers is None else (text,)) for e in examples for text, pair in [_text(e)]]
    texts = sorted(set(keys), key=lambda key: (-len(key), key))
    if len(texts) < 2:
        raise UserError(f"{examples[0].where}: all texts are equal: some must be held out, so give at least two")
    lies_in = containers(texts)
    if len(set(lies_in.values())) < 2:
        lies_in = {text: text for text in texts}  # all lie in one of them
    groups: dict[str, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        groups[lies_in[key]].append(number)
    members = list(groups.values())
    most, any_kind = max(1, round(fraction * len(examples))), [()] * len(examples)
    kinds = any_kind if numbers else _kinds(examples)
    chosen = _drawn(members, kinds, most) or _drawn(members, any_kind, most) or {*min(members, key=len)}
    return (
        [example for number, example in enumerate(examples) if number not in chosen],
        [example for number, example in enumerate(examples) if number in chosen],
    )


def _kinds(examples: Sequence[Example]) -> list[Collection[str]]:
    """Return what each example teaches: its labels, the types of its entities, or whether there is an answer."""
    kinds: list[Collection[str]] = []
    for example in examples:
        label = [example.label] if isinstance(example.label, str) else []
        answered = [] if example.answers is None else [str(bool(example.answers))]
        kinds.append({*label, *several(example.label), *(span.label for span in example.spans or ()), *answered})
    return kinds


def _drawn(members: Sequence[Sequence[int]], kinds: Sequence[Collection[str]], most: int) -> set[int]:
    """Return the numbers of up to `most` examples, whole groups of them, that leave an example of each kind."""
    drawn, left = set[int](), Counter(itertools.chain.from_iterable(kinds))
    for at in permuted(np.arange(len(members)), len(members), 0, 0).tolist():
        taken = Counter(kind for number in members[at] for kind in kinds[number])
        if len(drawn) + len(members[at]) <= most and all(left[kind] > count for kind, count in taken.items()):
            drawn.update(members[at])
            left.subtract(taken)
    return drawn


def containers(texts: Sequence[str]) -> dict[str, str]:
    """Return, for each text, the longest text that contains it as whole words; itself, where no other does.

    `texts` come sorted by length, the longest first. Each is looked for only where its rarest word occurs, in the
    LOOKED_AT longest such texts: a second for 67,000 texts.
    """
    words = {text: text.split() for text in texts}
    number_of_texts = Counter(word for each in words.values() for word in set(each))
    rarest = {text: min(each, key=number_of_texts.__getitem__) for text, each in words.items() if each}
    looked_for = set(rarest.values())
    longer: dict[str, list[tuple[str, str]]] = defaultdict(list)
    lies_in = dict(zip(texts, texts, strict=True))
    for text, word in rarest.items():
        inner = f" {' '.join(words[text])} "
        lies_in[text] = next((outer for outer, spaced in longer[word] if inner in spaced), text)
        if lies_in[text] is text:
            for each in looked_for.intersection(words[text]):
                if len(longer[each]) < LOOKED_AT:
                    longer[each].append((text, inner))
    return lies_in


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
