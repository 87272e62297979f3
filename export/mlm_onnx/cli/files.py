"""Whole files: the rows of a table or of JSON lines in, JSON lines out, a part of the file in memory at a time."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import IO, BinaryIO, Literal, NamedTuple

from mlm_onnx.bundle.layout import Json, QueryError
from mlm_onnx.cli.parser import UsageError, nearest

AT_ONCE = 1024
"""Most rows that are answered together, those of equal length in one run."""
BYTES_AT_ONCE = 1 << 20
"""Bytes of the file after which the rows read so far are answered, however few they are."""
LONGEST_ROW = 1 << 27
"""Most bytes of a line, or of the lines of a row: more is not a row, and would fill the memory."""
LONGEST_FIELD = 1 << 24
"""Characters of a field: more are a quote that nothing closes."""
TABLES = {".csv": ",;\t|", ".tsv": "\t"}
"""Suffix → the separators that a table may have."""
LINES = (".jsonl", ".ndjson")
TEXT = ".txt"
Answer = Callable[[list[tuple[str, ...]]], Sequence[Json]]
"""The texts of some rows, one for each column → the answer to each row."""


class Column(NamedTuple):
    """A column of texts."""

    option: str
    """It names the column."""
    given: str | None
    learned: str
    """The name it had in the file that the model learned from; empty if that is not known."""
    usual: str
    only: bool = False
    """Whether the only column that is left will do."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names that are looked for, in this order."""
        return tuple(filter(None, (self.learned, self.usual))) if self.given is None else (self.given,)


class Row(NamedTuple):
    """A row of a file."""

    line: int
    fields: dict[str, object]


def declare_file(parser: argparse.ArgumentParser, usual: str) -> None:
    """Add the options for whole files; `usual` describes the column that is read where none is named."""
    group = parser.add_argument_group("whole files, instead of TEXT")
    group.add_argument("--file", type=Path, metavar="IN", help="answer for each row of a .csv, .tsv, .jsonl or .txt")
    group.add_argument("--text", metavar="COLUMN", help=f"its column with the text (default: {usual})")
    group.add_argument("--out", type=Path, metavar="OUT", help="JSON lines to write: each row, and its answer")


def wants_file(options: argparse.Namespace) -> bool:
    """Return whether a whole file is to be answered.

    Raises:
        UsageError: neither a text nor a file is given, or both, or only a part of what a file needs.
    """
    if (options.text_given is None) == (options.file is None):
        raise UsageError(
            "give a TEXT, or --file IN --out OUT" if options.file is None else "give TEXT or --file, not both"
        )
    if options.file is None and (options.out is not None or options.text is not None):
        raise UsageError("--out and --text belong to --file: add --file IN")
    if options.file is not None and options.out is None:
        raise UsageError("--file needs --out OUT, the file to write")
    return options.file is not None


def answer_file(options: argparse.Namespace, columns: Sequence[Column], answer: Answer, label: str = "") -> None:
    """Write each row of --file with its answer to --out, which appears when all are written.

    Args:
        columns: those of each text of a row.
        label: the column that held the labels in the file that the model learned from.

    Raises:
        UsageError: the file is not readable, lacks a column, or has a row that cannot be answered; names the line.
    """
    path, began, done = options.file, time.monotonic(), 0
    with _reading(path) as stream, _writing(options.out) as out:
        names: list[str] = []
        for part in _parts(_rows(path, stream, columns[0].names), stream):
            names = names or _columns(path, columns, list(part[0].fields), label)
            texts = [tuple(_text(path, row, name) for name in names) for row in part]
            for row, found in zip(part, _answered(path, part, texts, answer), strict=True):
                echoed = {**row.fields, **{_free(key, row.fields): value for key, value in found.items()}}
                out.write(json.dumps(echoed, ensure_ascii=False) + "\n")
            done += len(part)
            _progress(done, began, stream.tell() / max(path.stat().st_size, 1))
        if not done:
            raise UsageError(f"{path}: there is no row in this file")
    seconds = time.monotonic() - began
    print(f"{options.out}: {done:,} rows in {seconds:.1f} s, {done / seconds:,.0f} a second", file=sys.stderr)


def _parts(rows: Iterator[Row], stream: BinaryIO) -> Iterator[list[Row]]:
    """Yield the rows in parts that fit in memory."""
    part: list[Row] = []
    began = stream.tell()
    for row in rows:
        part.append(row)
        if len(part) == AT_ONCE or stream.tell() - began >= BYTES_AT_ONCE:
            yield part
            part, began = [], stream.tell()
    if part:
        yield part


def _answered(path: Path, part: Sequence[Row], texts: list[tuple[str, ...]], answer: Answer) -> Sequence[Json]:
    try:
        return answer(texts)
    except QueryError:
        for row, text in zip(part, texts, strict=True):
            try:
                answer([text])
            except QueryError as error:
                raise UsageError(f"{path}, line {row.line}: {error}; nothing was written") from None
        raise


def _progress(done: int, began: float, share: float) -> None:
    if sys.stderr.isatty():
        passed = time.monotonic() - began
        left = passed / max(share, 1e-9) - passed
        print(f"\r{done:,} rows, {done / passed:,.0f} a second, {left:.0f} s left \x1b[K", end="", file=sys.stderr)
        if share >= 1:
            print(file=sys.stderr)


def _free(name: str, row: Json) -> str:
    """Return a name that the row does not have."""
    return name if name not in row else _free(f"predicted_{name}", row)


# ---- reading -------------------------------------------------------------------------------------


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    if not path.is_file():
        raise UsageError(f"--file {path}: {'is not a file' if path.exists() else 'no such file'}")
    if path.suffix not in (*TABLES, *LINES, TEXT):
        raise UsageError(f"--file {path}: rows are read from .csv, .tsv, .jsonl and .txt: give it such a suffix")
    with path.open("rb") as stream:
        yield stream


def _rows(path: Path, stream: BinaryIO, wanted: Sequence[str]) -> Iterator[Row]:
    if path.suffix in TABLES:
        yield from _table(path, stream, wanted)
        return
    for number, line in enumerate(_lines(path, stream), 1):
        line = line.rstrip("\r\n")
        if path.suffix == TEXT:
            yield Row(number, {"text": line})
        elif line.strip():
            yield Row(number, _object(path, number, line))


def _lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: stream.readline(LONGEST_ROW + 1), b""), 1):
        _check_size(path, number, len(line))
        try:
            yield (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{path}, line {number}: not UTF-8: convert the file first") from None


def _check_size(path: Path, line: int, size: int) -> None:
    if size > LONGEST_ROW:
        raise UsageError(
            f"{path}, line {line}: a row of more than {LONGEST_ROW >> 20} MB begins here: split it, or look for a line "
            "end or a quote that is missing"
        )


def _object(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}, line {number}: not JSON ({error}); expected one object a line") from None
    if not isinstance(row, dict):
        raise UsageError(f"{path}, line {number}: {type(row).__name__}, where an object with named fields was expected")
    return row


def _table(path: Path, stream: BinaryIO, wanted: Sequence[str]) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)  # of the whole process: the module knows no other
    separator = separator_of(next(_lines(path, stream), ""), wanted, TABLES[path.suffix])
    quoting: Literal[0, 3] = csv.QUOTE_NONE if path.suffix == ".tsv" and not _quotes_close(path) else csv.QUOTE_MINIMAL
    stream.seek(0)
    names: list[str] = []
    for line, fields in _records(path, stream, separator, quoting):
        if not names:
            names = [name.strip() for name in fields]
            if len(set(names)) < len(names):
                raise UsageError(f"{path}, line 1: two columns have one name: rename one of them")
        elif any(fields[len(names) :]):
            raise UsageError(
                f"{path}, line {line}: {len(fields)} fields, but the first line names {len(names)}: "
                'put a field that holds the separator in double quotes ("…")'
            )
        elif fields:
            yield Row(line, dict(zip_longest(names, fields[: len(names)])))


def separator_of(line: str, wanted: Sequence[str], separators: str) -> str:
    """Return the separator that makes a wanted column of a table's first line, as `jax_mlm.data.tables` chooses it.

    If none does, it is the first that stands in the line.
    """
    there: dict[str, list[str]] = {}
    for each in separators:
        if each in line:
            with suppress(csv.Error):  # a broken line is named when it is read
                there[each] = [name.strip() for name in next(csv.reader([line], delimiter=each), [])]
    fits = (each for name in wanted for each, names in there.items() if name in names)
    return next(fits, next(iter(there), separators[0]))


def _records(path: Path, stream: BinaryIO, separator: str, quoting: Literal[0, 3]) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row of a table, and the line on which it begins."""
    line, began = 1, stream.tell()

    def lines() -> Iterator[str]:
        for text in _lines(path, stream):
            _check_size(path, line, stream.tell() - began)
            yield text

    reader = csv.reader(lines(), delimiter=separator, quoting=quoting, strict=True)
    while True:
        line, began = reader.line_num + 1, stream.tell()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UsageError(f'{path}, line {line}: not a table ({error}); write " inside quotes as ""') from None
        if fields is None:
            return
        yield line, fields


def _quotes_close(path: Path) -> bool:
    """Return whether a TSV file has quotes as CSV has them: it often has none, and fields that begin with one."""
    with path.open("rb") as stream, suppress(UsageError):  # read again without quotes, where it comes up once more
        rows = _records(path, stream, "\t", csv.QUOTE_MINIMAL)
        _, names = next(rows, (1, []))
        return all(len(fields) <= len(names) for _, fields in rows)
    return False


def _columns(path: Path, columns: Sequence[Column], names: Sequence[str], label: str) -> list[str]:
    """Return the names of the columns that are read."""
    found: list[str] = []
    given = [column.given for column in columns if column.given is not None]
    for column in reversed(columns):
        name = column.given
        if name is None:
            left = [each for each in names if each not in (*given, *found)]
            others = [each for each in left if each not in ("label", label)]
            fits = [each for each in column.names if each in left]
            name = (fits or (others if column.only and len(others) == 1 else column.names))[0]
        if name not in names:
            there = ", ".join(str(each)[:40] for each in names[:20])
            raise UsageError(
                f"{path}: no column {name!r} (it has: {there}){nearest(name, names)}; "
                f"name it with {column.option} COLUMN"
            )
        found.insert(0, name)
    if len(set(found)) < len(found):
        options = " and ".join(column.option for column in columns)
        raise UsageError(f"{path}: {options} must name different columns, not {', '.join(found)}")
    return found


def _text(path: Path, row: Row, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str):
        kind = "nothing" if value is None else type(value).__name__
        raise UsageError(f"{path}, line {row.line}: the field {name!r} holds {kind}, not text")
    return value.encode("utf-8", "replace").decode()  # half of an escaped pair of JSON


# ---- writing -------------------------------------------------------------------------------------


@contextmanager
def _writing(path: Path) -> Iterator[IO[str]]:
    """Yield a file that gets its name when the block succeeds, so that no process ever sees half of it."""
    import os
    import tempfile

    if path.is_dir():
        raise UsageError(f"--out {path}: is a folder: name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be written ({error.strerror})") from None
    try:
        try:
            with open(number, "w", encoding="utf-8", errors="replace") as out:  # half of an escaped pair
                yield out
            Path(beside).chmod(0o644)
            os.replace(beside, path)
        except OSError as error:
            raise UsageError(f"--out {path}: cannot be written ({error.strerror or error})") from None
    finally:
        Path(beside).unlink(missing_ok=True)
