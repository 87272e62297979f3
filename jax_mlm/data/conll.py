"""CoNLL columns: one word a line and its tag in the last column, joined by spaces into texts with entities."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jax_mlm.data.decoding import line_blocks
from jax_mlm.data.labels import Example, Span
from jax_mlm.data.rows import Record, checked_kind, records, sound
from jax_mlm.data.sources import BLOCK
from jax_mlm.errors import UserError, nearest

OUTSIDE = "O"
TAG = re.compile(r"O|[BIESLU]-\S.*")
"""A tag: its letter, and after the first hyphen the type, which may hold further ones."""
BLANKS, COLUMN = " \t\r\v\f", re.compile(r"[^ \t\r\v\f]+")
"""What separates columns: a space of another width is part of a word."""
ENTITIES, TOKENS, TAGS = "entities", "tokens", ("tags", "ner_tags")
"""Fields of JSON lines: a text with entities by their offsets, or words with tags."""


class Tagged(NamedTuple):
    """What a file of entities holds."""

    examples: list[Example]
    remarks: tuple[str, ...]
    """What was read in a way that the user should know of."""


class _Word(NamedTuple):
    line: int
    text: str
    tag: str | None


def read_tagged(path: Path, unlabelled: bool = False) -> Tagged:
    """Return the texts of a file with their entities; `unlabelled` allows a file without tags.

    Raises:
        UserError: no such file, a line without a tag, a tag that is none, a span outside its text; names the line.
    """
    kind = checked_kind(path)
    if kind == "csv":
        raise UserError(f"{path}: entities are read from CoNLL columns (.conll, .tsv, .txt), JSON lines or Parquet")
    if kind in ("json", "parquet"):
        return _from_records(path, unlabelled)
    sentences = list(_sentences(path, unlabelled))
    if not sentences:
        raise UserError(f"{path}: there is no sentence in this file")
    seen: Counter[str] = Counter()
    examples = [
        _example(
            f"{path}, line {words[0].line}",
            [word.text for word in words],
            None if words[0].tag is None else [word.tag or "" for word in words],
            seen,
        )
        for words in sentences
    ]
    return Tagged(examples, _remarks(path, seen))


def _sentences(path: Path, unlabelled: bool) -> Iterator[list[_Word]]:
    """Yield the words of each sentence: lines up to one that is empty or holds white space alone."""
    words: list[_Word] = []
    tagged: bool | None = None
    first, count = 0, 0  # the first line with a word, and its columns
    for number, line in enumerate(_lines(path), 1):
        columns = line.rstrip(BLANKS).split("\t") if "\t" in line else COLUMN.findall(line)
        begins_document = bool(columns) and columns[0] == "-DOCSTART-"
        if not line.strip() or begins_document:
            if words:
                yield words
            words = []
            continue
        if line.startswith("# ") and not ("\t" in line.rstrip(BLANKS) or TAG.fullmatch(columns[-1])):
            continue  # a comment: a word # would have a tag
        word, tag = columns[0].strip(), columns[-1].strip() if len(columns) > 1 else None
        if not word:
            raise UserError(f"{path}, line {number}: the word is missing before the tag {tag!r}")
        tagged = (tag is not None) if tagged is None else tagged
        if tag is None and (tagged or not unlabelled):
            raise UserError(f"{path}, line {number}: the word {word[:40]!r} has no tag: add its column, O for none")
        if tag is not None and not tagged:
            raise UserError(f"{path}, line {number}: the word {word[:40]!r} has a tag, those before it have none")
        if tag is not None and not TAG.fullmatch(tag):
            raise UserError(f"{path}, line {number}: the tag {tag[:40]!r} is neither O nor like B-person or I-person")
        first, count = (first, count) if first else (number, len(columns))
        if len(columns) != count:
            missing = "the tag is missing: add it, O for none" if len(columns) < count else "give each line as many"
            raise UserError(f"{path}, line {number}: {len(columns)} columns, where line {first} has {count}: {missing}")
        words.append(_Word(number, word, tag))
    if words:
        yield words


def _lines(path: Path) -> Iterator[str]:
    for text, _ in line_blocks(path, BLOCK, math.inf):
        yield from text.removesuffix("\n").split("\n")


def _example(where: str, words: Sequence[str], tags: Sequence[str] | None, seen: Counter[str]) -> Example:
    """Join words by spaces, and their tags to entities."""
    text, places, at = " ".join(words), [], 0
    for word in words:
        places.append((at, at + len(word)))
        at += len(word) + 1
    if tags is None:
        return Example(where, text, words=tuple(places))
    iob = to_iob2(tags, seen)
    spans = [Span(places[a][0], places[b - 1][1], label) for a, b, label in entities_of(iob)]
    row = {"tokens": list(words), "tags": iob}
    return Example(where, text, spans=tuple(spans), words=tuple(places), row=row)


def to_iob2(tags: Sequence[str], seen: Counter[str] | None = None) -> list[str]:
    """Return the tags as IOB2 has them, from IOB1, IOB2, BIOES or BILOU; `seen` counts what was changed, and how."""
    out: list[str] = []
    before, open_ = "", False  # the type of the entity before, and whether it may go on
    for tag in tags:
        letter, _, kind = tag.partition("-")
        goes_on = open_ and kind == before
        if tag == OUTSIDE:
            new = OUTSIDE
        elif letter in "BSU":
            new = f"B-{kind}"
        else:
            new = f"I-{kind}" if goes_on else f"B-{kind}"
        if new != tag and seen is not None:
            seen["ends" if letter in "ESLU" else "begins"] += 1
        out.append(new)
        before, open_ = kind, tag != OUTSIDE and letter in "BI"
    return out


def entities_of(tags: Iterable[str]) -> list[tuple[int, int, str]]:
    """Return (first, end, type) of each entity of IOB2 tags; an I- that continues none begins one (conlleval)."""
    found: list[tuple[int, int, str]] = []
    for at, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        if tag == OUTSIDE:
            continue
        if letter == "I" and found and found[-1][1] == at and found[-1][2] == kind:
            found[-1] = (found[-1][0], at + 1, kind)
        else:
            found.append((at, at + 1, kind))
    return found


def strict_entities_of(tags: Iterable[str]) -> list[tuple[int, int, str]]:
    """Return the same where only a B- begins an entity: an I- that continues none is outside (strict IOB2)."""
    found: list[tuple[int, int, str]] = []
    for at, tag in enumerate(tags):
        letter, _, kind = tag.partition("-")
        if letter == "B":
            found.append((at, at + 1, kind))
        elif letter == "I" and found and found[-1][1] == at and found[-1][2] == kind:
            found[-1] = (found[-1][0], at + 1, kind)
    return found


def _remarks(path: Path, seen: Counter[str]) -> tuple[str, ...]:
    remarks = []
    if seen["ends"]:
        remarks.append(f"{path}: {seen['ends']} tags E-, S-, L- or U- (BIOES, BILOU) are read as B- and I-")
    if seen["begins"]:
        remarks.append(f"{path}: {seen['begins']} tags I- that continue no entity (IOB1) are read as B-")
    return tuple(remarks)


# ---- JSON lines and Parquet ----------------------------------------------------------------------


def _from_records(path: Path, unlabelled: bool) -> Tagged:
    seen: Counter[str] = Counter()
    examples = [_from_record(record, unlabelled, seen) for record in records(path, "text")]
    if not examples:
        raise UserError(f"{path}: there is no example in this file")
    return Tagged(examples, _remarks(path, seen))


def _from_record(record: Record, unlabelled: bool, seen: Counter[str]) -> Example:
    where, fields = record
    if TOKENS in fields:
        return _from_tokens(record, unlabelled, seen)
    text = fields.get("text")
    if not isinstance(text, str):
        raise UserError(f"{where}: no field 'text' with a text{nearest('text', fields)} (it has: {', '.join(fields)})")
    if sound(text, where) != text:
        raise UserError(f"{where}: the text holds half of an escaped pair, so that offsets would shift: write it whole")
    if fields.get(ENTITIES) is None:
        if unlabelled:
            return Example(where, text, row=fields)
        raise UserError(f"{where}: no field {ENTITIES!r} (it has: {', '.join(fields)}){nearest(ENTITIES, fields)}")
    given = fields[ENTITIES]
    if not isinstance(given, list):
        raise UserError(f"{where}: {ENTITIES} is {type(given).__name__}, where a list was expected")
    spans = tuple(sorted(_span(where, text, each) for each in given))
    for a, b in itertools.pairwise(spans):
        if b.start < a.end:
            raise UserError(f"{where}: the entities {text[a.start : a.end]!r} and {text[b.start : b.end]!r} overlap")
    return Example(where, text, spans=spans, row=fields)


def _span(where: str, text: str, given: object) -> Span:
    match given:
        case {"start": int(start), "end": int(end), "label": str(label)}:
            pass
        case _:
            raise UserError(f'{where}: an entity is {{"start": 0, "end": 5, "label": "person"}}, not {str(given)[:80]}')
    if not 0 <= start < end <= len(text):
        raise UserError(f"{where}: an entity from {start} to {end} in a text of {len(text)} characters")
    said = given.get("text", text[start:end]) if isinstance(given, dict) else text[start:end]
    if said != text[start:end]:
        raise UserError(f"{where}: at {start} to {end} the text has {text[start:end]!r}, not {str(said)[:80]!r}")
    if not label.strip():
        raise UserError(f"{where}: the entity {text[start:end]!r} has an empty label")
    return Span(start, end, label)


def _from_tokens(record: Record, unlabelled: bool, seen: Counter[str]) -> Example:
    where, fields = record
    words, name = fields[TOKENS], next((name for name in TAGS if fields.get(name) is not None), "")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise UserError(f"{where}: {TOKENS} must be a list of words, none of them empty")
    if not name and not unlabelled:
        raise UserError(f"{where}: no field {TAGS[0]!r} (it has: {', '.join(fields)}){nearest(TAGS[0], fields)}")
    tags = fields[name] if name else None
    if tags is not None and (not isinstance(tags, list) or len(tags) != len(words)):
        raise UserError(f"{where}: {name} must be a list of {len(words)} tags, one for each of the {TOKENS}")
    wrong = next((tag for tag in tags or () if not isinstance(tag, str) or not TAG.fullmatch(tag)), None)
    if wrong is not None:
        raise UserError(f"{where}: the tag {str(wrong)[:40]!r} is neither O nor like B-person or I-person")
    return _example(where, [sound(word, where) for word in words], tags, seen)
