"""Vocabulary pieces as people write them: which ones begin a word, and how one fits into a sentence."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models

SPACE = {"byte": "Ġ", "metaspace": "▁"}


class Pieces:
    """Reads the pieces of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._marks_space = ""
        self._continues = ""
        if isinstance(tokenizer.decoder, decoders.ByteLevel):
            self._marks_space = SPACE["byte"]
        elif isinstance(tokenizer.decoder, decoders.Metaspace):
            self._marks_space = SPACE["metaspace"]
        elif isinstance(tokenizer.model, models.WordPiece):
            self._continues = tokenizer.model.continuing_subword_prefix

    def raw(self, id: int) -> str:
        """Return the piece as the vocabulary stores it."""
        return self._tokenizer.id_to_token(id) or ""

    def begins_word(self, id: int) -> bool:
        raw = self.raw(id)
        if self._marks_space:
            return raw.startswith(self._marks_space)
        return not (self._continues and raw.startswith(self._continues))

    def surface(self, id: int) -> str:
        """Return the characters that a piece stands for, without the space before a word."""
        raw = self.raw(id)
        if self._marks_space:
            return self._tokenizer.decode([id], skip_special_tokens=False).strip() or raw
        return raw if self.begins_word(id) else raw[len(self._continues) :]

    def shown(self, id: int) -> str:
        """Return a piece as answers print it: its surface, but WordPiece keeps its ##, which marks endings."""
        return self.raw(id) if self._continues else self.surface(id)

    def fill(self, text: str, start: int, end: int, id: int) -> str:
        """Return the text with characters start to end replaced by a piece; a continuation joins the previous word."""
        before = text[:start]
        if not self.begins_word(id):
            before = before.rstrip()
        elif self._marks_space and before and not before[-1].isspace():
            before += " "
        return before + self.surface(id) + text[end:]

    def of(self, word: str) -> list[int]:
        """Return the pieces of a word inside a sentence; a piece written as `shown` returns it (##ing) stays one."""
        if (
            self._continues
            and word.startswith(self._continues)
            and (id := self._tokenizer.token_to_id(word)) is not None
        ):
            return [id]
        spaced = f" {word.strip()}" if self._marks_space == SPACE["byte"] else word.strip()
        return self._tokenizer.encode(spaced, add_special_tokens=False).ids
