"""SentencePiece's model files, read without its library: the pieces of a Unigram model, and its normalisation."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jax_mlm.errors import UserError
from jax_mlm.hf.tokenizer_files import REMEDY

UNIGRAM, UNKNOWN = 1, 2


class Unigram(NamedTuple):
    """What a model file holds."""

    pieces: list[tuple[str, float]]
    """Texts and scores, in the order of their ids."""
    unknown: int | None
    """The id of the piece that stands for what no piece covers."""
    charsmap: bytes
    """The table of its normaliser; empty where there is none."""


def read_unigram(path: Path) -> Unigram:
    """Read a model file; a UserError where it is broken, or holds a model of another kind."""
    try:
        pieces, kind, charsmap = _model_proto(path.read_bytes())
    except (IndexError, ValueError, TypeError, AttributeError, struct.error):
        raise UserError(f"{path} is truncated or no SentencePiece model: fetch it again") from None
    if kind != UNIGRAM or not pieces:
        raise UserError(f"{path} is not a Unigram model, the only kind that can be read: {REMEDY}")
    unknown = next((id for id, (_, _, type) in enumerate(pieces) if type == UNKNOWN), None)
    return Unigram([(text, score) for text, score, _ in pieces], unknown, charsmap)


def _model_proto(data: bytes) -> tuple[list[tuple[str, float, int]], int, bytes]:
    """(text, score, type) of each piece, the kind of model, and the table of its normaliser.

    The fields are those of sentencepiece_model.proto: pieces 1 (piece 1, score 2, type 3), trainer_spec 2 (model_type
    3), normalizer_spec 3 (precompiled_charsmap 2).
    """
    pieces, kind, charsmap = [], UNIGRAM, b""
    for number, value in _message(data):
        if number == 1:
            piece = dict(_message(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append((piece.get(1, b"").decode(), score, piece.get(3, 1)))
        elif number == 2:
            kind = dict(_message(value)).get(3, UNIGRAM)
        elif number == 3:
            charsmap = dict(_message(value)).get(2, b"")
    return pieces, kind, charsmap


def _message(data: bytes) -> Iterator[tuple[int, Any]]:  # an integer or bytes: who reads a field knows which
    """(field number, value) of a protocol buffer message: integers or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value
            if shift > 63:  # a number has ten bytes at most: more would take time that grows with their square
                raise ValueError("a number that does not end")

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or (varint() if key & 7 == 2 else -1)
        if size < 0 or at + size > len(data):
            raise ValueError("not a message")
        yield key >> 3, data[at : at + size]
        at += size
