"""Vocabulary pieces as people write them: which characters one stands for, and how it fits into a sentence.

What a piece stands for is what the tokenizer's own decoder makes of it after a letter. It is asked for one piece at a
time, when a piece is needed: no vocabulary is read at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer, decoders

from mlm_onnx.answer.words import is_word

ANCHOR = "x"
"""What a piece is decoded after, so that the space before it shows."""
CLOSE = 64
"""Characters before a mask that decide whether a piece needs a space there."""


class Piece(NamedTuple):
    """What a piece adds to a text."""

    surface: str
    """Its characters, without the space before or after a word."""
    spaced: bool
    """Whether it brings a space before it, as pieces of a byte-level or SentencePiece vocabulary do."""
    joins: bool
    """Whether it continues the word before it."""
    ends: bool = True
    """Whether a word ends with it; only vocabularies that mark ends (`</w>`) have pieces that do not."""


class Pieces:
    """Reads the pieces of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decode = _decoder_of(tokenizer)
        self._suffix = _suffix_of(tokenizer)
        self._added = {id: token.content for id, token in tokenizer.get_added_tokens_decoder().items()}
        self._apart = bool(self._suffix) or self._decode([ANCHOR, ANCHOR]) == f"{ANCHOR} {ANCHOR}"
        """Whether pieces are words unless they are marked as parts of one."""
        self._seen_spaces: dict[str, bool] = {}

    def raw(self, id: int) -> str:
        """Return the piece as the vocabulary stores it."""
        return self._tokenizer.id_to_token(id) or ""

    def read(self, id: int) -> Piece:
        """Return what a piece adds to a text."""
        if id in self._added:
            content = self._added[id]
            return Piece(content.removeprefix(" "), content.startswith(" "), joins=False)
        raw = self.raw(id)
        if self._suffix:
            surface = self._decode([ANCHOR, raw.removesuffix(self._suffix)]).removeprefix(ANCHOR)
            return Piece(surface, spaced=False, joins=False, ends=raw.endswith(self._suffix))
        text = self._decode([ANCHOR, raw]).removeprefix(ANCHOR)
        marked = text.startswith(" ")
        return Piece(text.removeprefix(" "), marked and not self._apart, joins=not marked)

    def begins_word(self, id: int) -> bool:
        return not self.read(id).joins

    def surface(self, id: int) -> str:
        """Return the characters that a piece stands for, without the space before or after a word."""
        return self.read(id).surface

    def shown(self, id: int) -> str:
        """Return a piece as answers print it: its surface, but WordPiece keeps its ##, which marks endings."""
        kept = self._apart and not self._suffix and id not in self._added
        return self.raw(id) if kept else self.surface(id) or " "

    def fill_all(self, text: str, spans: Sequence[tuple[int, int]], ids: Sequence[int]) -> str:
        """Return the text with each of its masks replaced by a piece, from the left, as `fill` does."""
        filled, last, previous = text, 0, None
        for (start, end), id in zip(spans, ids, strict=True):
            grown = len(filled) - len(text)
            touches = previous is not None and text[last:start] in ("", "" if previous.ends else " ")
            filled = self.fill(filled, start + grown, end + grown, id, previous if touches else None)
            last, previous = end, self.read(id)
        return filled

    def fill(self, text: str, start: int, end: int, id: int, previous: Piece | None = None) -> str:
        """Return the text with the mask at characters start to end replaced by a piece.

        Nothing else changes but one plain space beside it: a continuation joins the word before it over a space that
        no token of the query stands for, and a piece that brings its own space gets one.

        Args:
            previous: what a mask directly before this one was filled with.
        """
        piece, before, after = self.read(id), text[:start], text[end:]
        if piece.joins:
            if (
                previous is None
                and before[-1:] == " "
                and not before[-2:-1].isspace()
                and len(before) > 1
                and self._joinable(text[start:end])
            ):
                before = before[:-1]
        elif piece.spaced:
            before += " " if self._lacks_space(before, piece, text[start:end]) else ""
        elif is_word(before[-1:]) and is_word(piece.surface[:1]):
            told = not previous.ends if previous and self._suffix else self._reads(before, piece.surface, id)
            before += "" if told else " "
        if piece.ends:
            after = f" {after}" if self._suffix and is_word(after[:1]) and is_word(piece.surface[-1:]) else after
        elif after[:1] == " " and after[1:2].strip():
            after = after[1:]
        return before + piece.surface + after

    def _lacks_space(self, before: str, piece: Piece, mask: str) -> bool:
        """Return whether the space that a piece brings is to be added; one that is all of the piece always is."""
        if before[-1:] == " ":
            return not piece.surface and not self._joinable(mask)
        return before != "" and (not before[-1].isspace() or piece.surface[:1].isspace())

    def _joinable(self, mask: str) -> bool:
        """Return whether the space before a mask is not a token of its own."""
        if mask not in self._seen_spaces:
            encoding = self._tokenizer.encode(f"{ANCHOR} {mask}", add_special_tokens=False)
            self._seen_spaces[mask] = any(span == (1, 2) for span in encoding.offsets)
        return not self._seen_spaces[mask]

    def _reads(self, before: str, surface: str, id: int) -> bool:
        """Return whether the tokenizer finds the piece directly after what stands before it."""
        near = before[-CLOSE:].split()[-1]
        return self._ids(near + surface)[-1:] == [id]

    def of(self, word: str, before: str = " ") -> list[int]:
        """Return the pieces of a word in a sentence, one piece if there is any way to write it as one.

        A word with a space before it is only looked for after a space; a piece may be written as the vocabulary stores
        it (##ing, Ġthe).

        Args:
            before: the white space before the word, "" at the start of a text, "(" for any other character.
        """
        found: list[int] = []
        for ids in self._forms(word, before):
            if len(ids) == 1:
                return ids
            found = found or ids
        id = self._tokenizer.token_to_id(word)
        if id is not None and (surface := self.surface(id)) and (word.endswith(surface) or word.startswith(surface)):
            return [id]
        return found

    def _forms(self, word: str, before: str) -> Iterator[list[int]]:
        """Yield the ids of a word where it stands, after a space, after other characters, and at the start."""
        bare = word.strip()
        if not bare:
            return
        places = [" "] if word[0] == " " and not self._apart else dict.fromkeys((before, " ", "(", ""))
        for place in places:
            lead = f"{ANCHOR}{place}" if place.isspace() else place
            both = self._ids(lead + bare)
            # a space is part of the word after it; a line end is a token of its own, or as good as a space
            for ahead in (lead.rstrip(" "), lead.strip()):
                alone = self._ids(ahead)
                if both[: len(alone)] == alone and self._is_read(ahead, alone):
                    yield both[len(alone) :]
                    break

    def _is_read(self, ahead: str, ids: list[int]) -> bool:
        """Return whether the tokens before a word end with what stands there; an unknown one may hold more."""
        if not ahead or ahead == ANCHOR:
            return True
        return self._decode([ANCHOR, self.raw(ids[-1])]).endswith(ahead[-1])

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _decoder_of(tokenizer: Tokenizer) -> Callable[[list[str]], str]:
    """Return what joins pieces to a text, without any cleaning up: that depends on the piece alone."""
    decoder = tokenizer.decoder
    if decoder is None:
        return " ".join
    if isinstance(decoder, decoders.WordPiece):
        decoder = decoders.WordPiece(prefix=decoder.prefix, cleanup=False)
    return decoder.decode


def _suffix_of(tokenizer: Tokenizer) -> str:
    """Return what marks the end of a word in the vocabulary (`</w>`), or an empty string."""
    model = getattr(tokenizer.model, "end_of_word_suffix", None)
    decoder = getattr(tokenizer.decoder, "suffix", None) if isinstance(tokenizer.decoder, decoders.BPEDecoder) else None
    return model or decoder or ""
