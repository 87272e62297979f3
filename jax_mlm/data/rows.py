"""Rows of CSV, TSV, JSON and Parquet as fields by name, each with the file and line that it stands in."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jax_mlm.data.decoding import line_blocks, without_nul
from jax_mlm.data.sources import BLOCK, FileKind, kind_of
from jax_mlm.data.tables import Read, table_rows
from jax_mlm.errors import UserError, first_line, nearest


class Record(NamedTuple):
    """A row of a table or an object of a JSON file."""

    where: str
    fields: Mapping[str, object]


def records(path: Path, wanted: str) -> Iterator[Record]:
    """Yield the rows of a table, the objects of a JSON file or the rows of a Parquet file."""

    def read() -> Iterator[tuple[str, int]]:
        return line_blocks(path, BLOCK, math.inf)

    match checked_kind(path):
        case "csv" | "tsv" as kind:
            yield from _table(path, wanted, "\t" if kind == "tsv" else ",;\t|", read)
        case "json":
            yield from _json(path, "".join(text for text, _ in read()))
        case "parquet":
            yield from _parquet(path)
        case "text":
            raise UserError(f"{path}: examples are read from .csv, .tsv, .jsonl and .parquet: give it such a suffix")


def checked_kind(path: Path) -> FileKind:
    """Return how a file is read; a UserError if there is none, or if it is not text."""
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder: give a file' if path.is_dir() else 'no such file'}")
    return kind_of(path)


def _table(path: Path, wanted: str, separators: str, read: Read) -> Iterator[Record]:
    rows = table_rows(path, wanted, separators, read)
    _, names, _ = next(rows, (1, [], 0))
    names = [name.strip() for name in names]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"{path}, line 1: two columns are called {twice!r}: rename one of them")
    for line, row, _ in rows:
        if any(row[len(names) :]):
            raise UserError(
                f"{path}, line {line}: {len(row)} fields, but the first line names {len(names)}: "
                'put a field that holds the separator in double quotes ("…")'
            )
        if row:
            yield Record(f"{path}, line {line}", dict(itertools.zip_longest(names, row[: len(names)])))


def _json(path: Path, text: str) -> Iterator[Record]:
    """Yield the objects of JSON lines, of one array, or the only one, which may take several lines."""
    given = _whole(path, text)
    lines = enumerate(text.split("\n"), 1) if given is None else ()
    for number, line in lines:
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not JSON ({error}); expected one object a line") from None
            yield _object(f"{path}, line {number}", row)
    for number, row in enumerate(given or ()):
        yield _object(f"{path}, element {number}", row)


def _whole(path: Path, text: str) -> list[object] | None:
    """Return the elements of an array, or an object of several lines; None if each line is to be read on its own."""
    begin = text.lstrip()
    if not begin.startswith(("[", "{")) or (begin.startswith("{") and _is_json(begin.partition("\n")[0])):
        return None
    try:
        given = json.loads(begin)
    except (ValueError, RecursionError) as error:
        if begin.startswith("{") and getattr(error, "lineno", 1) <= 2:  # a first line that is cut off ends there
            return None
        raise UserError(f"{path}: not a JSON array or object ({error})") from None
    return given if isinstance(given, list) else [given]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _object(where: str, row: object) -> Record:
    if not isinstance(row, dict):
        raise UserError(f"{where}: {type(row).__name__}, where an object with named fields was expected")
    return Record(where, row)


def _parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"{path}: reading .parquet needs pyarrow: pip install 'jax-mlm[data]'") from error
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", row)
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        OverflowError,
    ) as error:  # the last two: a time outside Python's range
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from error


def missing_column(path: Path, option: str, name: str, names: Sequence[str], what: str = "") -> str:
    """Return that a file lacks a column, which holds `what`, and which option names another one."""
    shown = ", ".join(str(each)[:40] for each in names[:20]) + (", …" if len(names) > 20 else "")
    return (
        f"{path}: no column {name!r} (it has: {shown}){nearest(name, names)}; name the column of the "
        f"{what or option} with --{option}"
    )


def text_field(where: str, fields: Mapping[str, object], name: str) -> str:
    """Return the text in a field; a UserError where there is none."""
    if name not in fields:
        raise UserError(f"{where}: no field {name!r}")
    value = fields[name]
    if not isinstance(value, str):
        kind = "nothing" if value is None else type(value).__name__
        raise UserError(f"{where}: the field {name!r} holds {kind}, not text")
    return sound(value, where)


def sound(text: str, where: str) -> str:
    """Return a text that can be encoded: half of an escaped pair of JSON is replaced; a UserError if it holds a NUL."""
    return without_nul(text, where).encode("utf-8", "replace").decode()
