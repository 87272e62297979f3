"""Text sources as a stream of documents: plain text, JSON and Parquet, compressed or not, in bounded memory."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from jax_mlm.errors import UserError

DocumentKind = Literal["line", "blank", "file"]
TEXT = (".txt", ".tokens", ".md", ".text", ".raw")
RECORDS = (".jsonl", ".ndjson", ".json")
COMPRESSED = (".gz", ".xz", ".zst", ".bz2")
BLOCK = 1 << 20
"""Bytes read at a time."""
LONGEST_LINE = 4 << 20
"""A longer line of text is cut: at a space, where there is one."""
PIECE = 1 << 16
"""Characters of the longest text handed on; a longer document comes in several, cut at line ends or spaces."""
BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")


class Block(NamedTuple):
    """Texts read together. Each is a document, or a piece of a long one."""

    texts: list[str]
    starts: list[bool]
    """Whether the text begins a document, or goes on with the one before."""
    consumed: int
    """Bytes of the file read so far, as they lie on disk."""


def expand(patterns: Sequence[str], option: str = "--data") -> tuple[Path, ...]:
    """Return the files that files, folders (searched by suffix) and globs stand for: each once, sorted.

    Raises UserError, naming `option`, where there is none, or where a file named by itself is empty.
    """
    if not patterns:
        raise UserError(f"{option}: give a file, a folder or a glob of text")
    found: dict[Path, Path] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if _is_source(file, path)]
            if not files:
                raise UserError(f"{option} {pattern}: no text in this folder (looked for {_known()}, not empty)")
        elif path.exists():
            if path.stat().st_size == 0:
                raise UserError(f"{option} {pattern}: the file is empty")
            files = [path]
        else:
            matches = [Path(name) for name in glob.glob(str(path), recursive=True)]
            files = [file for file in matches if file.is_file() and file.stat().st_size]
            if not files:
                raise UserError(f"{option} {pattern}: no such file or folder" + (", or all empty" if matches else ""))
        found.update((file.resolve(), file) for file in files)
    return tuple(sorted(found.values()))


def documents(paths: Iterable[Path], document: DocumentKind, text_field: str) -> Iterator[str]:
    """Yield the documents of all files in order, without blank ones; one over `PIECE` characters comes in pieces."""
    for path in paths:
        for block in blocks(path, document, text_field):
            yield from block.texts


def blocks(path: Path, document: DocumentKind, text_field: str) -> Iterator[Block]:
    """Yield one file's documents in blocks of about a megabyte, the same at each reading.

    Raises UserError, naming file and position, for what is not UTF-8, not JSON, damaged or without the text field.
    """
    kind = kind_of(path)
    if kind == "parquet":
        yield from _whole(_parquet_texts(path, text_field))
    elif kind == "json":
        yield from _whole(_json_texts(path, text_field))
    elif document == "line":
        yield from _lines(path)
    else:
        yield from _paragraphs(path, BLANK_LINES if document == "blank" else None)


def kind_of(path: Path) -> Literal["text", "json", "parquet"]:
    """Return how a file is read, by its suffix before that of its compression."""
    suffix = _suffix(path)
    if suffix == ".parquet":
        return "parquet"
    return "json" if suffix in RECORDS else "text"


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def _is_source(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    known = _suffix(file) in (*TEXT, *RECORDS, ".parquet")
    return known and not hidden and file.is_file() and file.stat().st_size > 0


def _known() -> str:
    return " ".join((*TEXT, *RECORDS, ".parquet"))


# Bytes


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, io.BufferedIOBase]]:
    """Return the decompressed stream, and the raw file beneath it, whose position gives the progress."""
    try:
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
                stream = io.BufferedReader(reader, BLOCK)
                damage = (*damage, zstandard.ZstdError)
        try:
            yield stream, raw
        except damage as error:
            raise UserError(f"{path}: damaged or incomplete ({error})") from error


def _decoded(path: Path, data: bytes, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {offset + error.start}" + (" of the unpacked text" if path.suffix.lower() in COMPRESSED else "")
        raise UserError(
            f"{path}: not UTF-8 at {where} (0x{data[error.start]:02x}); "
            f"convert it first, for instance with: iconv -f LATIN1 -t UTF-8"
        ) from error


def _line_blocks(path: Path, cut_lines: bool = True) -> Iterator[tuple[str, int]]:
    """Decoded text, each block ending at a line end or, in a very long line, before a space; and bytes consumed."""
    with _opened(path) as (stream, raw):
        rest, offset = b"", 0
        while data := stream.read(BLOCK):
            if offset == 0 and not rest and data.startswith(b"\xef\xbb\xbf"):
                data, offset = data[3:], 3
            end = data.rfind(b"\n") + 1
            if end:
                end += len(rest)
            rest += data
            if not end and cut_lines and len(rest) >= LONGEST_LINE:
                end = max(rest.rfind(b" "), 0) or _last_character(rest)
            if end:
                yield _decoded(path, rest[:end], offset), raw.tell()
                rest, offset = rest[end:], offset + end
        if rest:
            yield _decoded(path, rest, offset), raw.tell()


def _last_character(data: bytes) -> int:
    """Return where the last UTF-8 character begins: data may end within it."""
    at = len(data) - 1
    while at > len(data) - 4 and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


# Plain text


def _lines(path: Path) -> Iterator[Block]:
    """Yield each line as a document."""
    unfinished = False
    for text, consumed in _line_blocks(path):
        lines = text.split("\n")
        parts = [part for line in lines if (part := line.strip())]
        starts = [True] * len(parts)
        if parts and unfinished and lines[0].strip():
            starts[0] = False
        unfinished = not text.endswith("\n")
        if parts:
            yield _bounded(parts, starts, consumed)


def _paragraphs(path: Path, separator: re.Pattern[str] | None) -> Iterator[Block]:
    """Yield what lies between two separators as a document; without a separator, the whole file."""
    open_text, begun, consumed = "", False, 0
    for text, at in _line_blocks(path):
        consumed = at
        open_text += text.replace("\r\n", "\n")
        parts = separator.split(open_text) if separator else [open_text]
        *finished, open_text = parts
        texts, starts = [], []
        for part in finished:
            if part.strip():
                texts.append(part.strip("\n"))
                starts.append(not begun)
            begun = False
        if len(open_text) > PIECE:  # hand on what there is of a long document, but for its last line end
            cut = len(open_text.rstrip())
            if open_text[:cut].strip():
                texts.append(open_text[:cut])
                starts.append(not begun)
                begun = True
            open_text = open_text[cut:][-PIECE:]
        if texts:
            yield _bounded(texts, starts, consumed)
    if open_text.strip():
        yield _bounded([open_text.strip("\n")], [not begun], consumed)


def _bounded(texts: list[str], starts: list[bool], consumed: int) -> Block:
    """Cut long texts into pieces of at most `PIECE` characters."""
    if max(map(len, texts)) <= PIECE:
        return Block(texts, starts, consumed)
    pieces, first = [], []
    for text, start in zip(texts, starts, strict=True):
        at = 0
        while at < len(text):
            end = at + PIECE
            if end < len(text):
                cut = max(text.rfind("\n", at + 1, end), -1)
                cut = cut if cut > 0 else text.rfind(" ", at + 1, end)
                end = cut if cut > 0 else end
            if text[at:end].strip():
                pieces.append(text[at:end])
                first.append(start)
                start = False
            at = end
    return Block(pieces, first, consumed)


# Records


def _whole(texts: Iterable[tuple[str, int]]) -> Iterator[Block]:
    """Yield blocks of records, each a document."""
    batch: list[str] = []
    size = consumed = 0
    for text, consumed in texts:
        if text.strip():
            batch.append(text)
            size += len(text)
        if size >= BLOCK:
            yield _bounded(batch, [True] * len(batch), consumed)
            batch, size = [], 0
    if batch:
        yield _bounded(batch, [True] * len(batch), consumed)


def _field(record: object, text_field: str, where: str) -> str:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be an object with the field {text_field!r}, see --text-field")
    if text_field not in record:
        fields = ", ".join(map(str, record)) or "none at all"
        raise UserError(f"{where}: no field {text_field!r} (it has: {fields}); name the text's with --text-field")
    value = record[text_field]
    if value is not None and not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(f"{where}: the field {text_field!r} holds {kind}, not text; name another with --text-field")
    text = value or ""
    try:
        text.encode()
    except UnicodeEncodeError:  # half of an escaped pair: "\\ud83d"
        return text.encode("utf-8", "replace").decode()
    return text


def _json_texts(path: Path, text_field: str) -> Iterator[tuple[str, int]]:
    """Yield the text of each JSON line, or of each element of one JSON array."""
    number, array = 0, False
    for text, consumed in (stream := _line_blocks(path, cut_lines=False)):
        if number == 0 and text.lstrip().startswith("["):
            array = True
            yield from _array_texts(path, text_field, text, consumed, stream)
        elif not array:
            for line in text.split("\n")[: None if not text.endswith("\n") else -1]:
                number += 1
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}); "
                        "expected one object a line, or one array of objects"
                    ) from error
                yield _field(record, text_field, f"{path}, line {number}"), consumed


def _array_texts(
    path: Path, text_field: str, text: str, consumed: int, stream: Iterator[tuple[str, int]]
) -> Iterator[tuple[str, int]]:
    """Yield the texts of one JSON array, an element at a time."""
    decoder, solid = json.JSONDecoder(), re.compile(r"[^\s,]")
    text, number, at = text.lstrip(), 0, 1
    while True:
        found = solid.search(text, at)
        at = found.start() if found else len(text)
        if text.startswith("]", at):
            return
        try:
            record, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            more = list(itertools.islice(stream, 1 + len(text) // BLOCK))  # doubling: linear in the element's size
            if not more:
                raise UserError(f"{path}, element {number}: not JSON ({error.msg})") from error
            text, at, consumed = text[at:] + "".join(part for part, _ in more), 0, more[-1][1]
            continue
        yield _field(record, text_field, f"{path}, element {number}"), consumed
        number += 1


def _parquet_texts(path: Path, text_field: str) -> Iterator[tuple[str, int]]:
    """Yield the column's values, row group by row group."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{path}: reading .parquet needs pyarrow: pip install 'jax-mlm[data]'") from error
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if text_field not in names:
                raise UserError(
                    f"{path}: no column {text_field!r} (it has: {', '.join(names)}); name the text's with --text-field"
                )
            kind = file.schema_arrow.field(text_field).type
            value = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not any(test(value) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
                raise UserError(f"{path}: the column {text_field!r} holds {kind}, not text; name another: --text-field")
            size, done, total = path.stat().st_size, 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                done += batch.num_rows
                for text in batch.column(0).to_pylist():
                    yield text or "", size * done // total
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
