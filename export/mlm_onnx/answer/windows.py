"""Texts → the windows of tokens that a fine-tuned model reads, laid out as `jax_mlm.data.align` does for training."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from mlm_onnx.answer.engine import Row
from mlm_onnx.answer.literal import as_text
from mlm_onnx.answer.reader import Reader, check_utf8
from mlm_onnx.bundle.layout import BundleError, Head, QueryError
from mlm_onnx.bundle.read import Bundle


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


class Span(NamedTuple):
    """A part of a text, `text[start:end]` in code points."""

    start: int
    end: int


class Part(NamedTuple):
    """A window of a text."""

    row: Row
    share: float
    """The part of the text's tokens that it holds."""


class Texts(NamedTuple):
    """The windows of a text, or of two, to classify."""

    parts: list[Part]
    left_out: int
    """Tokens at the end of the first of two texts that no window has room for."""


class Words(NamedTuple):
    """The windows of a text whose words are tagged."""

    rows: list[Row]
    """Those in which words are asked about."""
    order: list[int]
    """The numbers of the words, in the order in which the rows ask about them."""
    spans: list[Span]


class Asked(NamedTuple):
    """The windows of a question about a context."""

    rows: list[Row]
    offsets: np.ndarray
    """[tokens of all rows, 2] where each begins and ends in the context; both 0 outside of it."""
    left_out: int
    """Tokens at the end of the question that no window has room for."""


class WindowReader:
    """Lays out texts for one bundle."""

    def __init__(self, bundle: Bundle, head: Head, pair: bool) -> None:
        reader = Reader(bundle)
        self._rust, self._tokenizer, self._limits = reader.rust, reader.tokenizer, bundle.limits
        unknown = bundle.manifest["tokens"].get("unk", {})
        self._named_unknown = unknown.get("text")
        self._framing = frozenset(bundle.special.excluded) - {unknown.get("id")}
        self._literal: Tokenizer | None = None
        self._head = head
        self.frame = _frame_of(self._tokenizer, pair)
        self.room = bundle.limits.max_length - self.frame.size
        if self.room < 2 or not 0 <= head.overlap < self.room / 2:
            raise BundleError(
                f"{bundle.path}: windows of {bundle.limits.max_length} tokens leave no room for text and an overlap of "
                f"{head.overlap}"
            )
        model = self._tokenizer.model
        self._unknown = getattr(model, "unk_token", None)
        self._marks = bool(getattr(model, "continuing_subword_prefix", None))

    def encoded(self, text: str) -> Encoding:
        """Encode a text without its frame; what looks like a special token in it is text.

        Raises:
            QueryError: it exceeds a limit, or is not UTF-8.
        """
        if len(text) > self._limits.max_characters:
            raise QueryError(f"the text has {len(text)} characters; the limit is {self._limits.max_characters}")
        check_utf8(text)
        found = self._rust(self._tokenizer.encode, text, None, False, False)
        if self._framing.isdisjoint(found.ids):
            return found
        if self._literal is None:
            self._literal = self._rust(as_text, self._tokenizer, self._named_unknown)
        return self._rust(self._literal.encode, text, None, False, False)

    def texts(self, text: str, pair: str | None = None) -> Texts:
        """Return the windows of a text to classify, or of a pair: the second in windows, each after the first."""
        one = self.encoded(text.strip()).ids
        if pair is None:
            parts = spread(len(one), self.room, self._head.overlap)
            pieces = [(one[a:b], []) for a, b in parts]
            left_out = 0
        else:
            two, whole = self.encoded(pair.strip()).ids, len(one)
            if len(one) + len(two) > self.room and len(one) > self.room // 2:
                one = one[: max(self.room // 2, self.room - len(two))]
            left, left_out = self.room - len(one), whole - len(one)
            parts = spread(len(two), left, min(self._head.overlap, (left - 1) // 2))
            pieces = [(one, two[a:b]) for a, b in parts]
        total = sum(b - a for a, b in parts)
        return Texts(
            [
                Part(self.row(*piece, []), (b - a) / total if total else 1.0)
                for piece, (a, b) in zip(pieces, parts, strict=True)
            ],
            left_out,
        )

    def words(self, text: str) -> Words:
        """Return the windows of a text to tag; a word is asked about where it is farthest from an edge."""
        found = self.encoded(text)
        opens, spans = self._words_of(text, found)
        ids = found.ids
        parts = spread(len(ids), self.room, self._head.overlap)
        rows, order = [], []
        for (a, b), here in zip(parts, words_at_home(opens, parts), strict=True):
            if here:
                rows.append(self.row(ids[a:b], [], [opens[k] - a + len(self.frame.before) for k in here]))
                order += here
        return Words(rows, order, spans)

    def question(self, question: str, context: str) -> Asked:
        """Return the windows of a context, each after the question."""
        one, found = self.encoded(question.strip()).ids, self.encoded(context)
        two, whole = found.ids, len(one)
        if len(one) + len(two) > self.room and len(one) > self.room // 2:
            one = one[: max(self.room // 2, self.room - len(two))]
        left = self.room - len(one)
        parts = spread(len(two), left, min(self._head.overlap, (left - 1) // 2))
        places = np.array([_trimmed(context, span) for span in found.offsets], np.int64).reshape(-1, 2)
        before = len(self.frame.before) + len(one) + len(self.frame.between)
        around = ((before, len(self.frame.after)), (0, 0))
        offsets = np.concatenate([np.pad(places[a:b], around) for a, b in parts])
        rows = [self.row(one, two[a:b], []) for a, b in parts]
        return Asked(rows, offsets, whole - len(one))

    def row(self, one: Sequence[int], two: Sequence[int], at: Sequence[int]) -> Row:
        """Return a framed row of one text, or of two."""
        before, between, after, types = self.frame
        ids = np.array([*before, *one, *between, *two, *after], np.int64)
        kinds = None
        if self._head.types:
            kinds, middle = np.full(len(ids), types[0], np.int64), len(before) + len(one)
            if between:
                kinds[middle:], kinds[middle + len(between) :] = types[1], types[2]
        return Row(ids, np.array(at, np.int64), kinds)

    def _words_of(self, text: str, found: Encoding) -> tuple[list[int], list[Span]]:
        """Return the first token of each word, and where the words stand.

        WordPiece marks what goes on with a word; with other tokenizers a word is what stands between spaces. Tokens of
        white space alone do not count as words.
        """
        opens: list[int] = []
        spans: list[Span] = []
        for at, (token, (start, end)) in enumerate(zip(found.tokens, found.offsets, strict=True)):
            if self._marks:
                goes_on = len(token) != end - start and token != self._unknown
            else:
                goes_on = start > 0 and " " not in text[start - 1 : start + 1] and token != self._unknown
            if goes_on and spans:
                spans[-1] = Span(spans[-1].start, max(spans[-1].end, end))
            else:
                opens.append(at)
                spans.append(Span(start, end))
        words = [(at, Span(*_trimmed(text, span))) for at, span in zip(opens, spans, strict=True)]
        words = [(at, word) for at, word in words if word.start < word.end]
        return [at for at, _ in words], [word for _, word in words]


def spread(tokens: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Return begin and end of windows of `room` tokens over a text, which have at least `overlap` in common."""
    if tokens <= room:
        return [(0, tokens)]
    starts = [*range(0, tokens - room, room - overlap), tokens - room]
    return [(start, start + room) for start in starts]


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


def _trimmed(text: str, span: tuple[int, int]) -> tuple[int, int]:
    """Return the span without the white space at its edges."""
    start, end = span
    inside = text[start:end]
    if not (inside[:1].isspace() or inside[-1:].isspace()):
        return span
    start += len(inside) - len(inside.lstrip())
    return start, max(start, end - (len(inside) - len(inside.rstrip())))


def _frame_of(tokenizer: Tokenizer, pair: bool) -> Frame:
    """Return what the tokenizer's own template puts around a text or a pair."""
    for word in ("a", "A", "1", "."):
        encoding = tokenizer.encode(word, word if pair else None)
        sides = encoding.sequence_ids
        if ({0, 1} if pair else {0}) <= {*sides}:
            break
    else:
        raise BundleError("the bundle's tokenizer reads no plain text")
    ids, types = encoding.ids, encoding.type_ids
    start = sides.index(0)
    last = len(sides) - 1 - sides[::-1].index(1 if pair else 0)
    if not pair:
        return Frame(ids[:start], [], ids[last + 1 :], (types[0], 0, 0))
    second = sides.index(1)
    middle = second - 1 - sides[second - 1 :: -1].index(0)
    return Frame(ids[:start], ids[middle + 1 : second], ids[last + 1 :], (types[0], types[second - 1], types[second]))
