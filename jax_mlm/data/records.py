"""JSON lines, JSON arrays and Parquet: the field or column that holds the text."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from jax_mlm.data.decoding import LONGEST_RECORD, without_nul
from jax_mlm.data.tables import Read, listed
from jax_mlm.errors import UserError, first_line

BLOCK = 1 << 20
"""Characters of a block that is read, at least."""


def _field(record: object, text_field: str, where: str) -> str:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a record must be an object with the field {text_field!r}, see --text-field")
    if text_field not in record:
        fields = listed([*record]) or "none at all"
        raise UserError(f"{where}: no field {text_field!r} (it has: {fields}); name the text's with --text-field")
    value = record[text_field]
    if value is not None and not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(f"{where}: the field {text_field!r} holds {kind}, not text; name another with --text-field")
    text = without_nul(value or "", where)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of an escaped pair: "\\ud83d"
        return text.encode("utf-8", "replace").decode()
    return text


def json_texts(path: Path, text_field: str, read: Read) -> Iterator[tuple[str, int]]:
    """Yield the text of each JSON line, or of each element of one JSON array."""
    number, array = 0, False
    for text, consumed in (stream := read()):
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
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{path}, line {number}: not JSON ({_reason(error)}); "
                        "expected one object a line, or one array of objects"
                    ) from error
                yield _field(record, text_field, f"{path}, line {number}"), consumed


def _reason(error: ValueError | RecursionError) -> str:
    """Return what keeps a line from being JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "it is nested too deep" if isinstance(error, RecursionError) else "a number in it has too many digits"


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
            if text[at + 1 :].strip() or any(more.strip() for more, _ in stream):
                raise UserError(
                    f"{path}: text after the end of the JSON array; expected one array, or one object a line"
                )
            return
        try:
            record, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            if not isinstance(error, json.JSONDecodeError):
                raise UserError(f"{path}, element {number}: not JSON ({_reason(error)})") from error
            if len(text) - at > LONGEST_RECORD:
                raise UserError(
                    f"{path}: element {number} has more than {LONGEST_RECORD >> 20} MB: split it, or look for a quote "
                    "that is missing"
                ) from error
            more = list(itertools.islice(stream, 1 + len(text) // BLOCK))  # doubling: linear in the element's size
            if not more:
                raise UserError(f"{path}, element {number}: not JSON ({error.msg})") from error
            text, at, consumed = text[at:] + "".join(part for part, _ in more), 0, more[-1][1]
            continue
        yield _field(record, text_field, f"{path}, element {number}"), consumed
        number += 1


def parquet_texts(path: Path, text_field: str) -> Iterator[tuple[str, int]]:
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
                    f"{path}: no column {text_field!r} (it has: {listed(names)}); name the text's with --text-field"
                )
            kind = file.schema_arrow.field(text_field).type
            value = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not any(test(value) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
                raise UserError(f"{path}: the column {text_field!r} holds {kind}, not text; name another: --text-field")
            size, done, total = path.stat().st_size, 0, max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                done += batch.num_rows
                for text in batch.column(0).to_pylist():
                    yield (
                        without_nul(text or "", f"{path}, row {done - batch.num_rows} and following"),
                        size * done // total,
                    )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from error
