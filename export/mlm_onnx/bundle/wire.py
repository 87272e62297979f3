"""The protobuf wire format of an ONNX file, read without copying: numbers, strings and nested messages. Stdlib only."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence

VARINT, FIXED64, BYTES_FIELD, FIXED32 = 0, 1, 2, 5
Field = tuple[int, int, int, int]
"""(number, wire type, value or first byte, end)."""
NAME_BYTES = 1 << 12
MESSAGES = 1 << 22


class OnnxError(ValueError):
    """The file is not an ONNX model that a bundle may contain; the message is one line that gives the reason."""


class Wire:
    """A reader of fields between two byte positions, never beyond them; it enters nested messages only on request."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.parts = 0

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """Return (value, next position)."""
        value = shift = 0
        while at < end and shift < 70:
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & ((1 << 64) - 1), at
            shift += 7
        raise OnnxError("it is damaged: a number does not end")

    def fields(self, at: int, end: int, allowed: frozenset[int], what: str) -> Iterator[Field]:
        while at < end:
            key, at = self.varint(at, end)
            number, wire = key >> 3, key & 7
            if number not in allowed:
                raise OnnxError(f"its {what} has field {number}, which no bundle needs")
            if wire == VARINT:
                value, at = self.varint(at, end)
                yield number, wire, value, at
                continue
            if wire == BYTES_FIELD:
                length, at = self.varint(at, end)
            elif wire in (FIXED32, FIXED64):
                length = 4 if wire == FIXED32 else 8
            else:
                raise OnnxError(f"it is damaged: wire type {wire} in its {what}")
            if length > end - at:
                raise OnnxError(f"it is damaged or cut short: its {what} does not fit")
            yield number, wire, at, at + length
            at += length

    def inside(self, part: Field) -> tuple[int, int]:
        """Return the byte range (start, end) of a nested message."""
        if part[1] != BYTES_FIELD:
            raise OnnxError(f"it is damaged: field {part[0]} is not a message")
        self.parts += 1
        if self.parts > MESSAGES:
            raise OnnxError("it has too many parts")
        return part[2], part[3]

    def text(self, part: Field) -> str:
        start, end = self.inside(part)
        if end - start > NAME_BYTES:
            raise OnnxError("a name in it is too long")
        try:
            return self.data[start:end].decode()
        except UnicodeDecodeError:
            raise OnnxError("it is damaged: a name is not UTF-8") from None

    def number(self, part: Field) -> int:
        """Return a field's value as a signed integer."""
        if part[1] != VARINT:
            raise OnnxError(f"it is damaged: field {part[0]} is not a number")
        return part[2] - (1 << 64) if part[2] >> 63 else part[2]

    def numbers(self, part: Field) -> Sequence[int]:
        """Return a field's signed integers, whether packed or a single one."""
        if part[1] == VARINT:
            return (self.number(part),)
        at, end = self.inside(part)
        values = []
        while at < end:
            value, at = self.varint(at, end)
            values.append(value - (1 << 64) if value >> 63 else value)
        return values
