"""Whole files: the rows of a table or of JSON lines in, JSON lines out, a part of the file in memory at a time."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from mlm_onnx.bundle.layout import Json, QueryError
from mlm_onnx.cli.parser import UsageError, nearest

AT_ONCE = 1024
"""Rows that are answered together, those of equal length in one run."""
LONGEST_FIELD = 1 << 24
"""Characters of a field: more are a quote that nothing closes."""
TABLES = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
TEXT = ".txt"
Answer = Callable[[list[tuple[str, ...]]], Sequence[Json]]
"""The texts of some rows, one for each column → the answer to each row."""


class Row(NamedTuple):
    """A row of a file."""

    line: int
    fields: dict[str, object]


def declare_file(parser: argparse.ArgumentParser, column: str) -> None:
    """Add the options for whole files, whose column of texts usually has this name."""
    group = parser.add_argument_group("whole files, instead of TEXT")
    usual = "text, or the only one" if column == "text" else column
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


def answer_file(options: argparse.Namespace, columns: Sequence[tuple[str, str | None]], answer: Answer) -> None:
    """Write each row of --file with its answer to --out, which appears when all are written.

    Args:
        columns: (option, name of the column) of each text of a row; the first may be found by itself.

    Raises:
        UsageError: the file is not readable, lacks a column, or has a row that cannot be answered; names the line.
    """
    path, began, done = options.file, time.monotonic(), 0
    with _reading(path) as stream, _writing(options.out) as out:
        rows = _rows(path, stream)
        names: list[str] = []
        while part := list(islice(rows, AT_ONCE)):
            names = names or _columns(path, columns, list(part[0].fields))
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


def _rows(path: Path, stream: BinaryIO) -> Iterator[Row]:
    if path.suffix in TABLES:
        yield from _table(path, stream, TABLES[path.suffix])
        return
    for number, line in enumerate(_lines(path, stream), 1):
        line = line.rstrip("\r\n")
        if path.suffix == TEXT:
            yield Row(number, {"text": line})
        elif line.strip():
            yield Row(number, _object(path, number, line))


def _lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        try:
            yield (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{path}, line {number}: not UTF-8: convert the file first") from None


def _object(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}, line {number}: not JSON ({error}); expected one object a line") from None
    if not isinstance(row, dict):
        raise UsageError(f"{path}, line {number}: {type(row).__name__}, where an object with named fields was expected")
    return row


def _table(path: Path, stream: BinaryIO, separator: str) -> Iterator[Row]:
    quoting = csv.QUOTE_NONE if separator == "\t" and not _quotes_close(path) else csv.QUOTE_MINIMAL
    csv.field_size_limit(LONGEST_FIELD)  # of the whole process: the module knows no other
    reader = csv.reader(_lines(path, stream), delimiter=separator, quoting=quoting, strict=True)
    names: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UsageError(f'{path}, line {line}: not a table ({error}); write " inside quotes as ""') from None
        if fields is None:
            return
        if not names:
            names = [name.strip() for name in fields]
            if len(set(names)) < len(names):
                raise UsageError(f"{path}, line 1: two columns have one name: rename one of them")
        elif len(fields) > len(names):
            raise UsageError(f"{path}, line {line}: {len(fields)} fields, but the first line names {len(names)}")
        elif fields:
            yield Row(line, dict(zip(names, [*fields, *[None] * (len(names) - len(fields))], strict=True)))


def _quotes_close(path: Path) -> bool:
    """Return whether a TSV file has quotes as CSV has them: it often has none, and fields that begin with one."""
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8", errors="replace", newline="") as stream, suppress(csv.Error):
        rows = csv.reader(stream, delimiter="\t", strict=True)
        width = len(next(rows, []))
        return all(len(row) <= width for row in rows)
    return False


def _columns(path: Path, columns: Sequence[tuple[str, str | None]], names: Sequence[str]) -> list[str]:
    """Return the names of the columns that are read."""
    found: list[str] = []
    for option, name in columns:
        if name is None:
            others = [each for each in names if each != "label"]
            name = "text" if "text" in names else others[0] if len(others) == 1 else "text"
        if name not in names:
            there = ", ".join(str(each)[:40] for each in names[:20])
            raise UsageError(
                f"{path}: no column {name!r} (it has: {there}){nearest(name, names)}; name it with {option} COLUMN"
            )
        found.append(name)
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
            with open(number, "w", encoding="utf-8") as out:
                yield out
            Path(beside).chmod(0o644)
            os.replace(beside, path)
        except OSError as error:
            raise UsageError(f"--out {path}: cannot be written ({error.strerror or error})") from None
    finally:
        Path(beside).unlink(missing_ok=True)
