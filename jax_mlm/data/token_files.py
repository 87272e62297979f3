"""Token files: tokenised documents on disk, written by appending, read by memory mapping."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jax_mlm.data.encoding import Encoded

SAVE_EVERY = 16
"""Chunks between two points from which an interrupted preparation can continue."""
TOKENS, WORDS, DOCUMENTS, JOURNAL, INDEX = "tokens.bin", "words.bin", "documents.bin", "journal.jsonl", "index.json"


@dataclass(frozen=True)
class TokenFiles:
    """Tokenised documents on disk, memory-mapped."""

    tokens: np.ndarray
    """[N] uint16 or uint32: the text's ids, without special tokens around documents."""
    word_bits: np.ndarray
    """[ceil(N / 8)] uint8: one bit a token, the highest first, set where it begins a word."""
    documents: np.ndarray
    """[documents + 1] int64: where each document begins in `tokens`, and N."""
    fingerprint: str
    """Hash of the text's bytes, the tokenizer and the options that shaped the files."""

    def begins_word(self, at: np.ndarray) -> np.ndarray:
        """Return whether the tokens at these positions begin a word."""
        return (self.word_bits[at >> 3] >> (7 - (at & 7)).astype(np.uint8)) & 1 > 0


def open_files(folder: Path, key: str) -> TokenFiles | None:
    """Open the files in a folder; None where there are none, or where they are not what their index describes."""
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["key"] != key or any((folder / name).stat().st_size != n for name, n in index["sizes"].items()):
            return None
        tokens, words, documents = (
            np.asarray(np.memmap(folder / name, dtype, "r"))
            for name, dtype in ((TOKENS, index["dtype"]), (WORDS, "uint8"), (DOCUMENTS, "<i8"))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if documents[0] != 0 or documents[-1] != len(tokens) or len(words) != -(-len(tokens) // 8):
        return None
    return TokenFiles(tokens, words, documents, key)


class Writer:
    """Appends to the token files, and notes in a journal how far they can be trusted."""

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.dtype = folder, dtype.newbyteorder("<")
        self.chunks = self.tokens = self.documents = self.saved = 0
        names = (TOKENS, WORDS, DOCUMENTS)
        for name in (*names, JOURNAL):
            (folder / name).touch()
        sizes = [(folder / name).stat().st_size for name in names]
        for line in (folder / JOURNAL).read_text().splitlines():
            with suppress(ValueError):
                chunks, tokens, documents = json.loads(line)
                if all(size >= need for size, need in zip(sizes, self._sizes(tokens, documents), strict=True)):
                    self.chunks, self.tokens, self.documents = chunks, tokens, documents
        self.saved = self.chunks
        for name, need in zip(names, self._sizes(self.tokens, self.documents), strict=True):
            os.truncate(folder / name, need)
        self.files = {name: (folder / name).open("r+b") for name in names}
        for file in self.files.values():
            file.seek(0, os.SEEK_END)
        self.journal = (folder / JOURNAL).open("a")
        self.last_document, self.bits = -1, np.zeros(0, bool)
        if self.documents:
            self.last_document = int(np.fromfile(folder / DOCUMENTS, "<i8", offset=8 * (self.documents - 1))[0])
        if self.tokens % 8:
            last = np.fromfile(folder / WORDS, np.uint8, offset=self.tokens // 8)
            self.bits = np.unpackbits(last)[: self.tokens % 8].view(bool)

    def _sizes(self, tokens: int, documents: int) -> tuple[int, int, int]:
        return tokens * self.dtype.itemsize, -(-tokens // 8), documents * 8

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self.files.values(), self.journal):
            file.close()

    def append(self, encoded: Encoded, starts: list[bool]) -> None:
        """Add one chunk; `starts` tells which of its texts begin a document."""
        self.files[TOKENS].write(encoded.tokens.astype(self.dtype, copy=False).data)
        bits = np.concatenate([self.bits, encoded.begins])
        self.files[WORDS].seek(self.tokens // 8)
        self.files[WORDS].write(np.packbits(bits).data)
        self.bits = bits[len(bits) // 8 * 8 :]
        at = self.tokens + np.cumsum(encoded.lengths) - encoded.lengths
        self._begin(at[np.asarray(starts, bool)])
        self.tokens += len(encoded.tokens)
        self.chunks += 1
        if self.chunks - self.saved >= SAVE_EVERY:
            self._save()

    def _begin(self, at: np.ndarray) -> None:
        """Note where documents begin, but for those that turned out to be empty."""
        at = at[np.diff(at, prepend=self.last_document) > 0]
        self.files[DOCUMENTS].write(at.astype("<i8").data)
        self.documents += len(at)
        if len(at):
            self.last_document = int(at[-1])

    def _save(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        self.journal.write(json.dumps([self.chunks, self.tokens, self.documents]) + "\n")
        self.journal.flush()
        self.saved = self.chunks

    def finish(self, key: str, names: list[str]) -> None:
        """Close the last document and write the index, which makes the folder whole."""
        self._begin(np.array([self.tokens]))
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: (self.folder / name).stat().st_size for name in self.files}
        index = {"key": key, "dtype": self.dtype.name, "tokens": self.tokens, "documents": self.documents - 1}
        (self.folder / INDEX).write_text(json.dumps({**index, "sources": names, "sizes": sizes}, indent=1) + "\n")
