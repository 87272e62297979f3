"""CSV and TSV: the column of a table that holds the text."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from jax_mlm.data.decoding import without_nul
from jax_mlm.errors import UserError

LONGEST_FIELD = 1 << 28
"""Characters of a field: more are a quote that nothing closes."""
Read = Callable[[], Iterator[tuple[str, int]]]
"""Begins to read a file: its text in blocks of whole lines, and the bytes of it read so far."""


class Row(NamedTuple):
    """A row of a table."""

    line: int
    """On which it begins."""
    fields: list[str]
    consumed: int
    """Bytes of the file read so far."""


def table_texts(path: Path, text_field: str, separators: str, read: Read) -> Iterator[tuple[str, int]]:
    """Yield the column `text_field` of a table, and the bytes of the file read so far.

    The first line names the columns, and tells which one of `separators` it is.
    """
    yield from _column(path, text_field, table_rows(path, text_field, separators, read))


def table_rows(path: Path, wanted: str, separators: str, read: Read) -> Iterator[Row]:
    """Yield the rows of a table, the one that names the columns first; its separator is one that makes a `wanted` one.

    TSV often has no quotes, and a field that begins with one: it is read so where quotes do not close as they should.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL
    if separators == "\t" and not _quotes_close(path, wanted, read):
        quoting = csv.QUOTE_NONE
    yield from _rows(path, wanted, separators, quoting, read)


def listed(names: Sequence[str]) -> str:
    """Return the names of columns or fields, as far as a message has room for them."""
    return ", ".join(name[:40] for name in names[:20]) + (", …" if len(names) > 20 else "")


def columns_of(line: str, separators: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each of the separators that stands in a first line, and the names that it gives to the columns then."""
    for each in separators:
        if each in line:
            with suppress(csv.Error):  # a broken line is named when it is read
                yield each, next(csv.reader([line], delimiter=each), [])


def separator_of(line: str, text_field: str, separators: str) -> str:
    """Return the separator that makes a column `text_field` of the first line; else the first that stands in it."""
    there = dict(columns_of(line, separators))
    fits = (each for each, names in there.items() if text_field in (name.strip() for name in names))
    return next(fits, next(iter(there), separators[0]))


def _quotes_close(path: Path, text_field: str, read: Read) -> bool:
    try:
        width = 0
        for _, row, _ in _rows(path, text_field, "\t", csv.QUOTE_MINIMAL, read):
            width = width or len(row)
            if len(row) > width:
                return False
    except UserError:  # read again without quotes, where what else is wrong comes up once more
        return False
    return True


def _column(path: Path, text_field: str, rows: Iterator[Row]) -> Iterator[tuple[str, int]]:
    names: list[str] = []
    at = 0
    for line, row, consumed in rows:
        if not names:
            names = [name.strip() for name in row]
            if text_field not in names:
                raise UserError(
                    f"{path}: no column {text_field!r} (it has: {listed(names)}); name the text's with --text-field"
                )
            at = names.index(text_field)
        elif any(row[len(names) :]):
            raise UserError(
                f"{path}, line {line}: {len(row)} fields, but the first line names {len(names)}: "
                'put a field that holds the separator in double quotes ("…")'
            )
        elif at < len(row):
            yield without_nul(row[at], f"{path}, line {line}"), consumed
        elif row:
            raise UserError(f"{path}, line {line}: {len(row)} fields, too few to hold {text_field!r} ({len(names)})")


def _rows(path: Path, text_field: str, separators: str, quoting: Literal[0, 3], read: Read) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)  # of the whole process: the module knows no other
    consumed = 0

    def lines() -> Iterator[str]:
        nonlocal consumed
        for text, read_so_far in read():
            consumed = read_so_far
            yield from io.StringIO(text, newline="\n")

    stream = lines()
    first = next(stream, "")
    separator = separator_of(first, text_field, separators)
    reader = csv.reader(itertools.chain([first], stream), delimiter=separator, quoting=quoting, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            reason = "a quote that nothing closes" if "end of data" in str(error) or "limit" in str(error) else error
            raise UserError(
                f'{path}, line {line}: not a table as CSV has it ({reason}); write " inside quotes as ""'
            ) from error
        if row is None:
            return
        yield Row(line, row, consumed)
