"""Token files: tokenised documents on disk, written by appending, read by memory mapping."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jax_mlm.data.encoding import Encoded
from jax_mlm.data.learning import LITERAL_UNKNOWN
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.files import checksum, patience, write_atomically

SAVE_EVERY = 16
"""Chunks between two points from which an interrupted preparation can continue."""
TOKENS, WORDS, DOCUMENTS, DIGESTS = "tokens.bin", "words.bin", "documents.bin", "digests.bin"
JOURNAL, INDEX = "journal.jsonl", "index.json"
BLOCK = 1 << 24
"""Tokens looked at together."""


class Figures(NamedTuple):
    """What a text was found to hold when it was tokenised."""

    characters: int
    unknown: int
    """Tokens that are the unknown one."""
    special: int
    """Special tokens, the unknown one among them: they are never targets."""
    written: int
    """How often the text itself says `<unk>`."""


class Chunk(NamedTuple):
    """Texts that are tokenised together. Each is a document, or a piece of a long one."""

    texts: list[str]
    starts: list[bool]
    """Whether the text begins a document."""
    digests: np.ndarray
    """[texts] uint64: hash of each text's document, up to its end."""
    consumed: int
    """Bytes of all files read so far."""


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
    digests: np.ndarray | None = None
    """[documents] uint64: hash of each document's text; None in files of an earlier format."""
    figures: Figures | None = None
    """None in files of an earlier format."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Each text's path and the hash of its bytes."""

    def begins_word(self, at: np.ndarray) -> np.ndarray:
        """Return whether the tokens at these positions begin a word."""
        return (self.word_bits[at >> 3] >> (7 - (at & 7)).astype(np.uint8)) & 1 > 0


class Damaged(Exception):
    """Token files that are not what their index describes."""


def open_files(folder: Path, key: str, check: bool = True) -> TokenFiles | None:
    """Open the files in a folder; None where there are none. Unless they have just been written, read them to check.

    Raises:
        Damaged: the files are not what their index describes.
    """
    if not folder.exists():
        return None
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["key"] != key:
            raise Damaged(f"{INDEX} has changed")
        for name, size in index["sizes"].items():
            found = (folder / name).stat().st_size
            if found != size:
                raise Damaged(f"{name} has {found} of {size} bytes")
        if check:
            with patience(f"checking {folder}"):
                for name, crc in index.get("crc", {}).items():
                    if name in index["sizes"] and checksum(folder / name) != crc:
                        raise Damaged(f"{name} has changed since it was written")
        tokens, words, documents = (
            np.asarray(np.memmap(folder / name, dtype, "r"))
            for name, dtype in ((TOKENS, index["dtype"]), (WORDS, "uint8"), (DOCUMENTS, "<i8"))
        )
        digests = np.asarray(np.memmap(folder / DIGESTS, "<u8", "r")) if DIGESTS in index["sizes"] else None
        figures = Figures(**index["figures"]) if "figures" in index else None
        if documents[0] != 0 or documents[-1] != len(tokens) or len(words) != -(-len(tokens) // 8):
            raise Damaged(f"{DOCUMENTS} has changed")
        if digests is not None and len(digests) != len(documents) - 1:
            raise Damaged(f"{DIGESTS} has changed")
        return TokenFiles(tokens, words, documents, key, digests, figures)
    except OSError as error:
        raise Damaged(f"{Path(error.filename or folder).name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{INDEX} has changed") from error


class Writer:
    """Appends to the token files, and notes in a journal how far they can be trusted."""

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.dtype = folder, dtype.newbyteorder("<")
        self.chunks = self.tokens = self.documents = self.characters = self.written = self.saved = 0
        names = (TOKENS, WORDS, DOCUMENTS, DIGESTS)
        for name in (*names, JOURNAL):
            (folder / name).touch()
        sizes = [(folder / name).stat().st_size for name in names]
        for line in (folder / JOURNAL).read_text().splitlines():
            with suppress(ValueError):
                chunks, tokens, documents, characters, written = json.loads(line)
                if all(size >= need for size, need in zip(sizes, self._sizes(tokens, documents), strict=True)):
                    self.chunks, self.tokens, self.documents = chunks, tokens, documents
                    self.characters, self.written = characters, written
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

    def _sizes(self, tokens: int, documents: int) -> tuple[int, int, int, int]:
        return tokens * self.dtype.itemsize, -(-tokens // 8), documents * 8, documents * 8

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:  # one that cannot write its rest leaves none of the others open
            for file in (*self.files.values(), self.journal):
                closing.callback(file.close)

    def append(self, encoded: Encoded, chunk: Chunk) -> None:
        """Add one chunk and its tokens."""
        self.files[TOKENS].write(encoded.tokens.astype(self.dtype, copy=False).data)
        bits = np.concatenate([self.bits, encoded.begins])
        self.files[WORDS].seek(self.tokens // 8)
        self.files[WORDS].write(np.packbits(bits).data)
        self.bits = bits[len(bits) // 8 * 8 :]
        at = self.tokens + np.cumsum(encoded.lengths) - encoded.lengths
        first = np.flatnonzero(chunk.starts)
        last = np.append(first, len(chunk.texts)) - 1  # of the document before, and of each that begins here
        if last[0] >= 0:
            self._redigest(chunk.digests[last[0]])
        self._begin(at[first], chunk.digests[last[1:]])
        self.tokens += len(encoded.tokens)
        self.characters += sum(map(len, chunk.texts))
        self.written += sum(text.count(LITERAL_UNKNOWN) for text in chunk.texts)
        self.chunks += 1
        if self.chunks - self.saved >= SAVE_EVERY:
            self._save()

    def _begin(self, at: np.ndarray, digests: np.ndarray) -> None:
        """Note where documents begin, and their hashes, but for those that turned out to be empty."""
        kept = np.append(np.diff(at) > 0, True)[: len(at)]
        at, digests = at[kept], digests[kept]
        if len(at) and at[0] == self.last_document:
            self._redigest(digests[0])
            at, digests = at[1:], digests[1:]
        self.files[DOCUMENTS].write(at.astype("<i8").data)
        self.files[DIGESTS].write(digests.astype("<u8").data)
        self.documents += len(at)
        if len(at):
            self.last_document = int(at[-1])

    def _redigest(self, digest: np.uint64 | np.ndarray) -> None:
        """Correct the hash of the last document, of which there was more, or nothing yet."""
        self.files[DIGESTS].seek(8 * (self.documents - 1))
        self.files[DIGESTS].write(np.asarray(digest, "<u8").tobytes())

    def _save(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        self.journal.write(json.dumps([self.chunks, self.tokens, self.documents, self.characters, self.written]) + "\n")
        self.journal.flush()
        self.saved = self.chunks

    def finish(self, key: str, names: list[str], vocabulary: Vocabulary) -> None:
        """Close the last document and write the index, which makes the folder whole."""
        self._begin(np.array([self.tokens]), np.zeros(1, np.uint64))
        self.files[DIGESTS].truncate(8 * (self.documents - 1))
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: (self.folder / name).stat().st_size for name in self.files}
        index = {"key": key, "dtype": self.dtype.name, "tokens": self.tokens, "documents": self.documents - 1}
        figures = {"figures": self._figures(vocabulary)._asdict()} if self.tokens else {}
        crc = {name: checksum(self.folder / name) for name in self.files}
        body = {**index, "sources": names, "sizes": sizes, "crc": crc, **figures}
        write_atomically(self.folder / INDEX, json.dumps(body, indent=1) + "\n")

    def _figures(self, vocabulary: Vocabulary) -> Figures:
        """Count the special tokens in the file."""
        special = np.zeros(1 << 8 * self.dtype.itemsize if self.dtype.itemsize < 4 else vocabulary.size, bool)
        special[list(vocabulary.special)] = True
        tokens = np.memmap(self.folder / TOKENS, self.dtype, "r")
        counts = np.zeros(2, np.int64)
        for at in range(0, len(tokens), BLOCK):
            block = np.asarray(tokens[at : at + BLOCK])
            counts += (0 if vocabulary.unk is None else np.count_nonzero(block == vocabulary.unk), special[block].sum())
        return Figures(self.characters, int(counts[0]), int(counts[1]), self.written)
