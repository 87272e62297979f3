"""Files of text, sound and damaged, with the documents in them."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from jax_mlm.data.sources import documents, find_sources
from jax_mlm.errors import exit_status
from jax_mlm.train.start import words_of
from support.garbage import RAW, Outcome, attempt, byte_damage

LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0\ufeff"), max_size=24)
PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
}  # fmt: skip
MARKS = {"utf-8": b"", "utf-8-sig": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-32-be": codecs.BOM_UTF32_BE}


class Written(NamedTuple):
    """A file, and the documents in it; None if it need not be readable."""

    name: str
    content: bytes
    holds: list[str] | None


def kept(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]


@st.composite
def packed(draw: st.DrawFn, suffix: str, content: bytes, holds: list[str]) -> Written:
    """Return the content, compressed or not, and whole or damaged."""
    packing = draw(st.sampled_from(list(PACKERS)))
    content = PACKERS[packing](content)
    if draw(st.booleans()):
        return Written(f"a{suffix}{packing}", content, holds if content else None)
    return Written(f"a{suffix}{packing}", draw(byte_damage(content)), None)


@st.composite
def texts(draw: st.DrawFn) -> Written:
    lines = draw(st.lists(LINE, max_size=8))
    how = draw(st.sampled_from(("whole", "whole", "whole", "bytes", "long", "surrogates", "nul")))
    if how == "bytes":
        return Written("a.txt", draw(st.binary(max_size=400)), None)
    if how == "long":
        piece = draw(st.sampled_from(("a", "a b ", "é", "字")))
        return Written("a.txt", (piece * (10_000_000 // len(piece.encode()))).encode(), None)
    if how in ("surrogates", "nul"):
        lines = [*lines, "\ud83d" if how == "surrogates" else "a\0b", *lines]
        return Written("a.txt", "\n".join(lines).encode("utf-8", "surrogatepass"), None)
    encoding, end = draw(st.sampled_from(list(MARKS))), draw(st.sampled_from(("\n", "\r\n", "\r")))
    text = end.join(lines) + draw(st.sampled_from(("", end)))
    content = MARKS[encoding] + text.encode(encoding)
    if not text.strip():
        return Written("a.txt", content, None)
    return draw(packed(draw(st.sampled_from((".txt", ".md", ".raw"))), content, kept(lines)))


@st.composite
def jsons(draw: st.DrawFn) -> Written:
    lines = draw(st.lists(LINE, min_size=1, max_size=5))
    records = [{"id": number, "text": line} for number, line in enumerate(lines)]
    ascii_only, array = draw(st.booleans()), draw(st.booleans())
    if draw(st.booleans()):
        records[-1] = draw(st.sampled_from(({}, {"text": 3}, {"text": ["a"]}, {"Text": "a"}, [], "a", 3, None)))
        content = "\n".join(map(json.dumps, records)).encode()
        raw = draw(st.sampled_from(RAW)).encode()
        field = b'{"text": ' + raw + b"}"
        return Written("a.jsonl", draw(st.sampled_from((content, raw, field, b"[" + field + b"]"))), None)
    if array:
        text = json.dumps(records, ensure_ascii=ascii_only)
    else:
        text = draw(st.sampled_from(("\n", "\r\n"))).join(json.dumps(r, ensure_ascii=ascii_only) for r in records)
    return draw(packed(".json" if array else ".jsonl", text.encode(), [line for line in lines if line.strip()]))


@st.composite
def tables(draw: st.DrawFn) -> Written:
    lines = [line for line in draw(st.lists(LINE, min_size=1, max_size=5)) if line.strip()]
    suffix, mark = draw(st.sampled_from(((".csv", ","), (".csv", ";"), (".tsv", "\t"))))
    written = io.StringIO()
    writer = csv.writer(written, delimiter=mark, lineterminator=draw(st.sampled_from(("\n", "\r\n"))))
    writer.writerows([["id", "text"], *([number, line] for number, line in enumerate(lines))])
    content = written.getvalue().encode()
    if draw(st.booleans()):
        more = st.sampled_from((b'"', b'a"b\n', b"1,2,3,4\n", b"1\n", b"\r", b"text\n", b'"x', b"," * 5000 + b"\n"))
        at = draw(st.integers(0, len(content)))
        return Written(f"a{suffix}", content[:at] + draw(more) + content[at:], None)
    return draw(packed(suffix, content, lines))


COLUMNS = (
    pa.array(["a b", None, ""]), pa.array([1, 2, 3]), pa.array([1.0, None, float("nan")]),
    pa.array([b"a", b"\xff", b""]),
    pa.array([["a"], [], None]), pa.array([{"text": "a"}] * 3), pa.array([None] * 3), pa.array([True, False, None]),
    pa.array(["a b", "c", "a b"]).dictionary_encode(), pa.array(["a b", "c d", "e"], pa.large_string()),
    pa.array([0, 1, 2], pa.timestamp("s")), pa.array(["a\0b", "c", "d"]),
)  # fmt: skip


@st.composite
def parquets(draw: st.DrawFn) -> Written:
    name = draw(st.sampled_from(("text", "text", "Text", "")))
    written = io.BytesIO()
    if draw(st.booleans()):
        lines = draw(st.lists(LINE, min_size=1, max_size=5))
        pq.write_table(pa.table({"text": lines}), written)
        holds = [line for line in lines if line.strip()]
        if draw(st.booleans()):
            return Written("a.parquet", written.getvalue(), holds)
    else:
        pq.write_table(pa.table({name: draw(st.sampled_from(COLUMNS))}), written)
        if draw(st.booleans()):
            return Written("a.parquet", written.getvalue(), None)
    return Written("a.parquet", draw(byte_damage(written.getvalue())), None)


def read_texts(case: Written, folder: Path) -> Outcome:
    (folder / case.name).write_bytes(case.content)
    found: list[str] = []

    def read() -> None:
        found.extend(documents(find_sources([case.name]).files, "line", "text"))

    outcome = attempt(lambda: exit_status(read), folder)
    if case.holds is not None:
        assert outcome.status == 0, outcome.said
        assert found == case.holds
    return outcome


@st.composite
def word_files(draw: st.DrawFn) -> bytes:
    return draw(st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode), st.just(b"a\n" * 100_000)))


def read_words(content: bytes, folder: Path) -> Outcome:
    (folder / "w.txt").write_bytes(content)
    return attempt(lambda: exit_status(lambda: words_of(["w.txt"])), folder)
