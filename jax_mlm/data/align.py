"""Texts to framed windows of tokens, and labels to the tokens that carry them, by offsets in the text itself.

A text is encoded as it will be when the model is asked; nothing is split into words before. Each window has slots: the
positions at which something is predicted, and the number of the item predicted there. An item is a text to classify, or
a word to tag. What does not fit is in further windows, never cut off; what cannot be aligned is counted by its reason.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from jax_mlm.data.conll import OUTSIDE
from jax_mlm.data.labels import Example, Span
from jax_mlm.data.tokenizer import as_text
from jax_mlm.errors import UserError

TOGETHER = 4096
"""Texts encoded in one call."""


class Frame(NamedTuple):
    """The special tokens that the tokenizer puts around a text, and around each of a pair."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[int, int, int]
    """Token types of the first text and what stands before it, of what stands between, and of the second text."""

    @property
    def size(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class Windows:
    """Framed windows, one after the other, as flat arrays."""

    tokens: np.ndarray
    """[T]"""
    types: np.ndarray
    """[T] token types."""
    first: np.ndarray
    """[windows + 1] where each begins in the tokens."""
    at: np.ndarray
    """[slots] position in its window at which something is predicted."""
    items: np.ndarray
    """[slots] the number of what is predicted."""
    shares: np.ndarray
    """[slots] weight of the slot among those of its item; they add up to 1."""
    first_slot: np.ndarray
    """[windows + 1]"""


class Unit(NamedTuple):
    """A word that gets a tag, as the tokenizer tells words apart: `text[start:end]`, without white space around it."""

    start: int
    end: int


class Laid(NamedTuple):
    """Examples as windows."""

    windows: Windows
    remarks: tuple[str, ...]
    """What was cut, dropped or is not exact, counted."""
    units: tuple[tuple[Unit, ...], ...] = ()
    """The words of each example, to tag: the items are numbered through them."""


def frame_of(tokenizer: Tokenizer, pair: bool) -> Frame:
    """Return what the tokenizer's own template puts around a text or a pair; a UserError if it reads no plain text."""
    for word in ("a", "A", "1", "."):
        encoding = tokenizer.encode(word, word if pair else None)
        sides = encoding.sequence_ids
        if ({0, 1} if pair else {0}) <= {*sides}:
            break
    else:
        raise UserError("--init: its tokenizer reads no plain text: start from a model with another tokenizer")
    ids, types = encoding.ids, encoding.type_ids
    start = sides.index(0)
    last = len(sides) - 1 - sides[::-1].index(1 if pair else 0)
    if not pair:
        return Frame(ids[:start], [], ids[last + 1 :], (types[0], 0, 0))
    second = sides.index(1)
    middle = second - 1 - sides[second - 1 :: -1].index(0)
    return Frame(ids[:start], ids[middle + 1 : second], ids[last + 1 :], (types[0], types[second - 1], types[second]))


def encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Encoding]:
    """Encode texts without a frame; what looks like a special token in them is text."""
    reads = as_text(tokenizer)
    for begin in range(0, len(texts), TOGETHER):
        yield from reads.encode_batch(list(texts[begin : begin + TOGETHER]), add_special_tokens=False)


def spread(tokens: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Return begin and end of windows of `room` tokens over a text, which have at least `overlap` in common."""
    if tokens <= room:
        return [(0, tokens)]
    starts = [*range(0, tokens - room, room - overlap), tokens - room]
    return [(start, start + room) for start in starts]


def check_room(length: int, frame: int, overlap: int) -> int:
    """Return the tokens of a text in a window; a UserError where --length or --overlap leave too few."""
    room = length - frame
    if room < 2:
        raise UserError(f"--length {length} leaves no room for text: give more than {frame + 1}")
    if not 0 <= overlap < room / 2:
        raise UserError(f"--overlap {overlap} must be less than half of a window of {room} tokens (--length {length})")
    return room


# ---- texts to classify ---------------------------------------------------------------------------


def lay_texts(tokenizer: Tokenizer, examples: Sequence[Example], pair: bool, length: int, overlap: int) -> Laid:
    """Return the windows of texts to classify: one item a text, predicted at the first token of each of its windows.

    White space around a text does not belong to it. Of a long pair, the second text is in windows, each after the
    first text.

    Raises:
        UserError: the tokenizer puts no token before a text, whose hidden state could stand for it.
    """
    frame = frame_of(tokenizer, pair)
    if not frame.before:
        raise UserError(
            "--init: its tokenizer puts no special token before a text, as one of whole words, and a classifier needs "
            "one: start from a model with another tokenizer"
        )
    room = check_room(length, frame.size, overlap)
    laying, long, cut = Laying(frame), Count(), Count()
    seconds = encoded(tokenizer, [(each.pair or "").strip() for each in examples] if pair else [])
    firsts = encoded(tokenizer, [each.text.strip() for each in examples])
    for number, (example, first) in enumerate(zip(examples, firsts, strict=True)):
        one = first.ids
        if not pair:
            parts = spread(len(one), room, overlap)
            pieces = [(one[a:b], []) for a, b in parts]
        else:
            two = next(seconds).ids
            if len(one) + len(two) > room and len(one) > room // 2:
                cut.add(example.where)
                one = one[: max(room // 2, room - len(two))]
            left = room - len(one)
            parts = spread(len(two), left, min(overlap, (left - 1) // 2))
            pieces = [(one, two[a:b]) for a, b in parts]
        if len(pieces) > 1:
            long.add(example.where)
        total = sum(b - a for a, b in parts)
        for piece, (a, b) in zip(pieces, parts, strict=True):
            laying.add(*piece, [0], [number], [(b - a) / total if total else 1.0])
    remarks = (
        long.said(f"texts are longer than {room} tokens and are read in windows"),
        cut.said("first texts of a pair are too long and were cut (raise --length)"),
        Count([each.where for each in examples if not each.text.strip()]).said("texts are empty"),
    )
    return Laid(laying.windows(), tuple(filter(None, remarks)))


class Count(list[str]):
    """Where something happened."""

    def add(self, where: str) -> None:
        self.append(where)

    def said(self, what: str) -> str:
        """Return how often, and where first; empty if it never happened."""
        return f"{len(self)} {what} (the first: {self[0]})" if self else ""


class Laying:
    """Windows as they are added."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._tokens: list[list[int]] = []
        self._types: list[list[int]] = []
        self._at: list[Sequence[int]] = []
        self._items: list[Sequence[int]] = []
        self._shares: list[Sequence[float]] = []

    def add(
        self, one: list[int], two: list[int], at: Sequence[int], items: Sequence[int], shares: Sequence[float]
    ) -> None:
        before, between, after, types = self._frame
        self._tokens.append([*before, *one, *between, *two, *after])
        second = [types[1]] * len(between) + [types[2]] * (len(two) + len(after)) if between else []
        self._types.append([types[0]] * (len(self._tokens[-1]) - len(second)) + second)
        self._at.append(at)
        self._items.append(items)
        self._shares.append(shares)

    def windows(self) -> Windows:
        def flat(parts: Sequence[Sequence[float]], dtype: type) -> np.ndarray:
            return np.fromiter(itertools.chain.from_iterable(parts), dtype)

        def firsts(parts: Sequence[Sequence[float]]) -> np.ndarray:
            return np.cumsum([0, *map(len, parts)])

        return Windows(
            flat(self._tokens, np.int32),
            flat(self._types, np.int32),
            firsts(self._tokens),
            flat(self._at, np.int32),
            flat(self._items, np.int64),
            flat(self._shares, np.float32),
            firsts(self._at),
        )


# ---- words to tag --------------------------------------------------------------------------------


def lay_words(tokenizer: Tokenizer, examples: Sequence[Example], length: int, overlap: int) -> Laid:
    """Return the windows of texts whose words are tagged, each at its first token.

    A word in the overlap of two windows is predicted in the one in which it is farther from an edge.
    """
    frame = frame_of(tokenizer, False)
    room = check_room(length, frame.size, overlap)
    laying, long = Laying(frame), Count()
    units: list[tuple[Unit, ...]] = []
    number = 0
    for example, encoding in zip(examples, encoded(tokenizer, [each.text for each in examples]), strict=True):
        opens, words = units_of(tokenizer, example.text, encoding)
        ids = encoding.ids
        parts = spread(len(ids), room, overlap)
        if len(parts) > 1:
            long.add(example.where)
        for (a, b), here in zip(parts, words_at_home(opens, parts), strict=True):
            at = [opens[k] - a + len(frame.before) for k in here]
            laying.add(ids[a:b], [], at, [number + k for k in here], [1.0] * len(here))
        units.append(words)
        number += len(words)
    remark = long.said(f"texts are longer than {room} tokens and are read in windows")
    return Laid(laying.windows(), (remark,) if remark else (), tuple(units))


def words_at_home(opens: Sequence[int], parts: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the numbers of the words of each window; a word is in the first in which it is farthest from an edge.

    `opens` holds the first token of each word.
    """
    starts, ends = [a for a, _ in parts], [b for _, b in parts]
    here: list[list[int]] = [[] for _ in parts]
    for k, at in enumerate(opens):
        holding = range(bisect_right(ends, at), bisect_right(starts, at))
        here[max(holding, key=lambda i, at=at: _distance(at, parts, i))].append(k)
    return here


def _distance(at: int, parts: Sequence[tuple[int, int]], i: int) -> float:
    """Return how far a token of a window is from the nearest of its edges that are not those of the text."""
    a, b = parts[i]
    left = at - a if i else len(parts) * b
    right = b - 1 - at if i < len(parts) - 1 else len(parts) * b
    return min(left, right)


def units_of(tokenizer: Tokenizer, text: str, encoding: Encoding) -> tuple[list[int], tuple[Unit, ...]]:
    """Return the first token of each word, and where the words stand, told apart as transformers' pipelines do.

    WordPiece marks what goes on with a word; with other tokenizers a word is what stands between spaces. Tokens of
    white space alone do not count as words.
    """
    unknown = getattr(tokenizer.model, "unk_token", None)
    marks = bool(getattr(tokenizer.model, "continuing_subword_prefix", None))
    opens: list[int] = []
    bounds: list[tuple[int, int]] = []
    for at, (token, (start, end)) in enumerate(zip(encoding.tokens, encoding.offsets, strict=True)):
        if marks:
            goes_on = len(token) != end - start and token != unknown
        else:
            goes_on = start > 0 and " " not in text[start - 1 : start + 1] and token != unknown
        if goes_on and bounds:
            bounds[-1] = (bounds[-1][0], max(bounds[-1][1], end))
        else:
            opens.append(at)
            bounds.append((start, end))
    words = [(at, _trimmed(text, start, end)) for at, (start, end) in zip(opens, bounds, strict=True)]
    words = [(at, word) for at, word in words if word.start < word.end]
    return [at for at, _ in words], tuple(word for _, word in words)


def _trimmed(text: str, start: int, end: int) -> Unit:
    inside = text[start:end]
    start += len(inside) - len(inside.lstrip())
    return Unit(start, max(start, end - (len(inside) - len(inside.rstrip()))))


class Tags(NamedTuple):
    """The tags of the words of all examples, in IOB2."""

    tags: list[list[str]]
    remarks: tuple[str, ...]
    """Entities that are not those of the file, counted by reason."""


def tags_of(examples: Sequence[Example], units: Sequence[Sequence[Unit]]) -> Tags:
    """Lay each example's entities on its words: B- on the first word that an entity touches, I- on the others."""
    tags: list[list[str]] = []
    inexact, dropped = Count(), Count()
    for example, words in zip(examples, units, strict=True):
        mine, begins, first = [OUTSIDE] * len(words), [word.start for word in words], 0
        for span in example.spans or ():
            while first < len(words) and words[first].end <= span.start:
                first += 1
            reached = range(first, bisect_left(begins, span.end))
            touched = [k for k in reached if span.start < words[k].end and mine[k] == OUTSIDE]
            for k in touched:
                mine[k] = f"{'B' if k == touched[0] else 'I'}-{span.label}"
            if not touched:
                dropped.add(f"{example.where}: {_shown(example, span)}")
            elif (words[touched[0]].start, words[touched[-1]].end) != (span.start, span.end):
                inexact.add(f"{example.where}: {_shown(example, span)}")
        tags.append(mine)
    remarks = (
        inexact.said("entities begin or end within a word of this tokenizer, and take all of it"),
        dropped.said("entities have no word of their own in this tokenizer, and are left out"),
    )
    return Tags(tags, tuple(filter(None, remarks)))


def _shown(example: Example, span: Span) -> str:
    return repr(example.text[span.start : span.end][:60])
