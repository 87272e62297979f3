"""Bytes of a file to text: compression, encodings, and errors that say what a file is instead."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jax_mlm.errors import UserError

COMPRESSED = (".gz", ".xz", ".zst", ".bz2")
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16's, with which it begins
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""The encodings that a mark at the beginning of a file tells."""
MAGIC = {b"%PDF": "a PDF", b"PK\x03\x04": "a ZIP archive, as .docx, .xlsx, .odt and .epub are", b"\x1f\x8b": "gzip"}
"""What the first bytes tell of a file whose suffix hides it."""
LONGEST_RECORD = 1 << 27
"""Most bytes without a line end where lines are not cut: more is not a record, and would fill the memory."""
CONTROLS = (*range(9), *range(14, 32))
"""Bytes that text does not hold, but UTF-16 does: the upper halves of its letters."""


@contextmanager
def opened(path: Path, block: int) -> Iterator[tuple[io.BufferedIOBase, io.BufferedIOBase]]:
    """Return the decompressed stream, and the raw file beneath it, whose position gives the progress."""
    try:
        if not path.is_file():  # to open a pipe would wait for whoever writes to it
            raise UserError(f"{path}: is not a file that can be read twice: pipe it in, and name it - instead")
        raw = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    damage: tuple[type[Exception], ...] = (EOFError, OSError, zlib.error, lzma.LZMAError)
    with raw:
        stream: io.BufferedIOBase = raw
        match path.suffix.lower():
            case ".gz":
                stream = gzip.GzipFile(fileobj=raw)
            case ".xz":
                stream = lzma.LZMAFile(raw)  # noqa: SIM115
            case ".bz2":
                stream = bz2.BZ2File(raw)
            case ".zst":
                try:
                    import zstandard
                except ImportError as error:
                    raise UserError(f"{path}: reading .zst needs zstandard: pip install 'jax-mlm[data]'") from error
                reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
                stream = io.BufferedReader(reader, block)
                damage = (*damage, zstandard.ZstdError)
        try:
            yield stream, raw
        except damage as error:
            raise UserError(f"{path}: damaged or incomplete ({error})") from error


def _decoded(path: Path, data: bytes, offset: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_text(path, data, offset, error.start, f"not UTF-8 at {{}} (0x{data[error.start]:02x})") from error
    if "\0" in text:
        raise _not_text(path, data, offset, data.index(0), "not text: a NUL character at {}")
    return text


def _not_text(path: Path, data: bytes, offset: int, at: int, what: str) -> UserError:
    """Return the error of bytes that are not UTF-8 text, with the remedy that they point to."""
    unpacked = " of the unpacked text" if path.suffix.lower() in COMPRESSED else ""
    sample = data[: 1 << 16]
    odd, even = sample[1::2].count(0), sample[::2].count(0)
    if offset == 0 and (magic := next((name for first, name in MAGIC.items() if data.startswith(first)), None)):
        remedy = f"it is {magic}: give it the suffix that says so, or take its text out first"
    elif not odd + even:
        remedy = (
            "convert it from the encoding it has, for instance with: iconv -f CP1252 -t UTF-8 "
            "(CP1251 for Cyrillic, GB18030 for Chinese, SHIFT_JIS for Japanese)"
        )
    elif "NUL" in what and (offset or 8 * sum(map(sample.count, CONTROLS)) < len(sample)):  # UTF-16: more
        remedy = "remove it, for instance with: tr -d '\\000'"
    elif offset or 8 * min(odd, even) > max(odd, even):
        remedy = "it looks like a binary file, or like text converted from an encoding that it did not have"
    else:  # the other half of an ASCII character, at least of a space or a line end
        encoding = "UTF-16LE" if odd >= even else "UTF-16BE"
        remedy = f"if it is UTF-16 without a mark, convert it first: iconv -f {encoding} -t UTF-8"
    return UserError(f"{path}: {what.format(f'byte {offset + at}{unpacked}')}; {remedy}")


def _recoded(path: Path, stream: io.BufferedIOBase, block: int) -> Iterator[tuple[bytes, int]]:
    """Yield blocks of bytes, and where each begins; without a mark, and recoded where the mark tells another encoding.

    What the mark takes counts as read only in UTF-8, where positions are those of the file.
    """
    data = stream.read(block)
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    data = data[len(mark) :]
    if not mark or MARKS[mark] == "utf-8":
        at = len(mark)
        while data:
            yield data, at
            at += len(data)
            data = stream.read(block)
        return
    decoder, at = codecs.getincrementaldecoder(MARKS[mark])(), 0
    while True:
        try:
            recoded = decoder.decode(data, final=not data).encode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: damaged {MARKS[mark].upper()} ({error.reason})") from error
        if recoded:
            yield recoded, at
        if not data:
            return
        at += len(recoded)
        data = stream.read(block)


def line_blocks(path: Path, block: int, longest_line: float) -> Iterator[tuple[str, int]]:
    """Yield decoded text, `block` bytes read at a time, and the bytes of the file read so far.

    It ends at a line end or, in a line longer than `longest_line` bytes, before a space.

    Raises:
        UserError: the file cannot be read, is damaged or is not text.
    """
    with opened(path, block) as (stream, raw):
        rest, offset = bytearray(), 0
        for data, at in _with_newlines(_recoded(path, stream, block)):
            offset = at - len(rest)
            end = data.rfind(b"\n") + 1
            if end:
                end += len(rest)
            rest += data
            if not end and len(rest) >= longest_line:
                end = max(rest.rfind(b" "), 0) or _last_character(rest)
            if end:
                yield _decoded(path, bytes(rest[:end]), offset), raw.tell()
                del rest[:end]
                offset += end
            if len(rest) > LONGEST_RECORD:
                raise UserError(
                    f"{path}: a record of more than {LONGEST_RECORD >> 20} MB begins at byte {offset}: split it, or "
                    "look for a line end or a quote that is missing"
                )
        if rest:
            yield _decoded(path, bytes(rest), offset), raw.tell()


def _with_newlines(blocks: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    """Yield the blocks; carriage returns become newlines where only they end lines, as on Macs of old."""
    old: bool | None = None
    for data, at in blocks:
        if old is None:
            old = b"\r" in data[:-1] and b"\n" not in data
        yield (data.replace(b"\r", b"\n") if old else data), at


def _last_character(data: bytearray) -> int:
    """Return where the last UTF-8 character begins: data may end within it."""
    at = len(data) - 1
    while at > len(data) - 4 and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def without_nul(text: str, where: str) -> str:
    """Return the text of a record; raise a UserError that names it where it holds NUL characters."""
    if "\0" in text:
        raise UserError(f"{where}: the text holds a NUL character: remove it, or read the file as it was before")
    return text
