"""Texts → tokens → rows for the model; long texts are read through a window centred on each position."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from tokenizers import Tokenizer

from mlm_onnx.answer.engine import Row
from mlm_onnx.answer.session import first_line
from mlm_onnx.bundle.layout import TOKENIZER, BundleError, QueryError
from mlm_onnx.bundle.read import Bundle, verify

OTHER_MASKS = re.compile(r"\[MASK\]|<mask>|<\|mask\|>|\[mask\]|<MASK>|<extra_id_0>|_{3,}")
MASKS_A_TEXT = 1024
LETTER, LETTERS = "a", "a a"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Text:
    """A tokenised text of any length."""

    text: str
    ids: np.ndarray
    offsets: Sequence[tuple[int, int]]
    """Character range of each token."""
    frame: tuple[int, int]
    """How many tokens frame the text before and after it ([CLS], [SEP]); every window has them."""
    at: np.ndarray
    """Token positions of the masks."""
    spans: tuple[tuple[int, int], ...]
    """Character ranges of the masks."""

    def with_ids(self, ids: np.ndarray) -> Text:
        return replace(self, ids=ids)

    def before(self, mask: int) -> str:
        """Return the white space before a mask, "" at the start of the text, and "(" for any other character."""
        start = self.spans[mask][0]
        character = self.text[max(0, start - 1) : start]
        return character if not character or character.isspace() else "("


class Tokens(NamedTuple):
    """What the tokenizer makes of a text."""

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]
    framing: Sequence[int]
    """1 for tokens that frame the text, else 0."""


class Reader:
    """Tokenises texts with a bundle's tokenizer, within the bundle's limits."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.file = bundle.file(TOKENIZER)
        verify(bundle, TOKENIZER)
        self.tokenizer: Tokenizer = self.rust(Tokenizer.from_file, str(self.file))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        if self.tokenizer.token_to_id(bundle.special.mask) != bundle.special.mask_id:
            raise BundleError(f"{bundle.path}: tokenizer and manifest disagree on the mask token")
        mask = self.tokenizer.get_added_tokens_decoder().get(bundle.special.mask_id)
        self._strips = mask is not None and mask.lstrip

    def rust(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Call the tokenizers library, whose errors and panics share no base class narrower than BaseException."""
        try:
            return function(*arguments)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            raise BundleError(f"{self.file} is not a valid tokenizer: {first_line(error)}") from None

    def encode(self, text: str) -> Text:
        """Tokenise a text, which may be longer than the model's window.

        Raises:
            QueryError: the text is empty or exceeds a limit.
        """
        limits = self.bundle.limits
        if not text.strip():
            raise QueryError("the text is empty")
        if len(text) > limits.max_characters:
            raise QueryError(f"the text has {len(text)} characters; the limit is {limits.max_characters}")
        check_utf8(text)
        tokens = self._tokens(text)
        ids = np.array(tokens.ids, np.int64)
        if not len(ids):
            raise QueryError("the text has no token of this model")
        if ids.max() >= self.bundle.vocab_size:
            raise BundleError(f"{self.file} has more tokens than the model")
        framing = np.array(tokens.framing, bool)
        inner = np.flatnonzero(~framing)
        frame = (int(inner[0]), len(ids) - 1 - int(inner[-1])) if len(inner) else (0, 0)
        at = np.flatnonzero((ids == self.bundle.special.mask_id) & ~framing)
        return Text(text, ids, tokens.offsets, frame, at, ())

    def _tokens(self, text: str) -> Tokens:
        """Tokenise a text so that the tokens before its masks are those that stand before a word in training.

        Masks of many tokenizers take all the white space before them, line ends and indentation too, which the words
        that they stand for never do. There, a letter put before the mask keeps that white space; its token is dropped.
        """
        inside = layout_before(text, self.bundle.special.mask) if self._strips else []
        if any(inside):
            longer, starts = with_letters(text, self.bundle.special.mask, inside)
            found = self.rust(self.tokenizer.encode, longer)
            ids, offsets, framing = found.ids, found.offsets, found.special_tokens_mask
            masks = [at for at, id in enumerate(ids) if id == self.bundle.special.mask_id]
            if len(masks) == len(inside):
                dropped = {
                    position
                    for at, laid_out in zip(masks, inside, strict=True)
                    if laid_out
                    for position in range(at - self._letter_tokens(ids, at), at)
                }
                kept = [position for position in range(len(ids)) if position not in dropped]
                places = [offsets[position] for position in kept]
                return Tokens(
                    [ids[position] for position in kept],
                    [(start - bisect_left(starts, start), end - bisect_left(starts, end)) for start, end in places],
                    [framing[position] for position in kept],
                )
        found = self.rust(self.tokenizer.encode, text)
        return Tokens(found.ids, found.offsets, found.special_tokens_mask)

    def _letter_tokens(self, ids: Sequence[int], at: int) -> int:
        """Return how many tokens before a position are the letter that was put there, and a space before it."""
        alone, both = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in (LETTER, LETTERS))
        spaced = both[len(alone) :]
        return len(spaced) if list(ids[at - len(spaced) : at]) == spaced else 1

    def masked(self, text: str) -> Text:
        """Tokenise a text that contains at least one mask and something else.

        Raises:
            QueryError: it does not, is empty or exceeds a limit.
        """
        mask = self.bundle.special.mask
        if text.strip() and len(text) <= self.bundle.limits.max_characters:
            if mask not in text:
                other = OTHER_MASKS.search(text)
                note = f" (it contains {other.group()}, which is not this model's mask)" if other else ""
                raise QueryError(f"the text has no mask{note}: write {mask} where a word is missing")
            if not text.replace(mask, "").strip():
                raise QueryError(f"the text is nothing but {mask}: add words around it")
            if text.count(mask) > MASKS_A_TEXT:
                raise QueryError(f"the text has {text.count(mask)} masks; the limit is {MASKS_A_TEXT}")
        read = self.encode(text)
        starts = [text.find(mask, read.offsets[position][0]) for position in read.at]
        if not starts or min(starts) < 0:
            raise QueryError(f"the tokenizer does not recognise {mask} in the text: put spaces around it")
        return replace(read, spans=tuple((start, start + len(mask)) for start in starts))

    def is_long(self, text: Text) -> bool:
        return len(text.ids) > self.bundle.limits.max_length

    def window(self, text: Text, position: int) -> tuple[int, int]:
        """Return the tokens [first, last), framing excluded, that the model sees when asked about this position."""
        (before, after), room = text.frame, self.room(text)
        first = min(max(before, position - room // 2), max(before, len(text.ids) - after - room))
        return first, min(first + room, len(text.ids) - after)

    def row(self, text: Text, position: int) -> Row:
        """Return the row that asks about one position of a text, through the window around it."""
        if not self.is_long(text):
            return Row(text.ids, np.array([position]))
        (first, last), (before, after) = self.window(text, position), text.frame
        ids = np.concatenate([text.ids[:before], text.ids[first:last], text.ids[len(text.ids) - after :]])
        return Row(ids, np.array([position - first + before]))

    def hidden(self, text: Text, position: int, until: int) -> Row:
        """Return the row that asks about one position of a text, with the tokens from it on hidden."""
        row = self.row(text, position)
        at, ids = int(row.at[0]), row.ids.copy()
        ids[at : min(at + until - position, len(ids) - text.frame[1])] = self.bundle.special.mask_id
        return Row(ids, row.at)

    def rows(self, text: Text, positions: np.ndarray, at_once: int) -> Iterator[tuple[np.ndarray, Row]]:
        """Yield (indices into positions, row) in order, covering them all: many per row if the whole text fits."""
        if self.is_long(text):
            for index, position in enumerate(positions):
                yield np.array([index]), self.row(text, int(position))
            return
        for start in range(0, len(positions), at_once):
            yield (
                np.arange(start, min(start + at_once, len(positions))),
                Row(text.ids, positions[start : start + at_once]),
            )

    def parts(self, text: Text) -> Iterator[np.ndarray]:
        """Yield the text's ids in as few framed rows as possible, all of nearly the same length."""
        before, after = text.frame
        inner = text.ids[before : len(text.ids) - after]
        for part in np.array_split(inner, max(1, -(-len(inner) // self.room(text)))):
            yield np.concatenate([text.ids[:before], part, text.ids[len(text.ids) - after :]])

    def room(self, text: Text) -> int:
        """Return how many tokens of a text the model reads at once, besides the framing tokens."""
        room = self.bundle.limits.max_length - sum(text.frame)
        if room < 1:
            raise BundleError(f"{self.file} frames a text with more tokens than the model reads")
        return room

    def seen(self, text: Text, position: int) -> tuple[int, int]:
        """Return the character range of the window around a position."""
        first, last = self.window(text, position)
        return text.offsets[first][0], text.offsets[last - 1][1]


def layout_before(text: str, mask: str) -> list[bool]:
    """Return for each mask whether line ends or indentation stand before it, not just a space."""
    found, start = [], text.find(mask)
    while start >= 0:
        first = start
        while first and text[first - 1].isspace():
            first -= 1
        run = text[first:start]
        found.append(bool(run.strip(" ")) or (first == 0 and len(run) > 1))
        start = text.find(mask, start + len(mask))
    return found


def with_letters(text: str, mask: str, inside: Sequence[bool]) -> tuple[str, list[int]]:
    """Return the text with a letter before some of its masks, and where in it these letters are."""
    parts, starts, end = text.split(mask), [], 0
    longer = [parts[0]]
    for part, laid_out in zip(parts[1:], inside, strict=True):
        end += len(longer[-1])
        if laid_out:
            starts.append(end)
        longer.append(f"{LETTER if laid_out else ''}{mask}{part}")
    return "".join(longer), starts


def check_utf8(text: str) -> None:
    """Raise QueryError for lone surrogates, which is what bytes that are not UTF-8 become on a command line."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise QueryError("the text is not valid UTF-8") from None
