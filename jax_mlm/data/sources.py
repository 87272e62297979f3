"""Text sources as a stream of documents: plain text, tables, JSON and Parquet, compressed or not, in bounded memory."""

from __future__ import annotations

import glob
import hashlib
import itertools
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from jax_mlm.data.decoding import COMPRESSED, MARKS, line_blocks
from jax_mlm.data.records import json_texts, parquet_texts
from jax_mlm.data.tables import columns_of, table_texts
from jax_mlm.errors import UserError
from jax_mlm.files import beside, make_folder, naming, publish

STDIN = "-"
"""Stands for standard input among files."""
PACKED = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\0", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh"}
"""The bytes that compressed text begins with, by suffix."""
DocumentKind = Literal["line", "blank", "file"]
FileKind = Literal["text", "json", "csv", "tsv", "parquet"]
TEXT = (".txt", ".tokens", ".md", ".text", ".raw")
RECORDS = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv")
PANDOC = "take its text out first, for instance with: pandoc -t plain {name} -o {stem}.txt"
OFFICE = "save it as text first, for instance with: libreoffice --headless --convert-to txt {name}"
SHEET = "save its sheet as CSV first"
ARCHIVE = "unpack it first, and give the folder"
FASTA = (
    "put each sequence on a line of its own first, for instance with: "
    'awk \'/^>/ {{if (n++) print ""; next}} {{printf "%s", $0}} END {{print ""}}\' {name} > {stem}.txt'
)
FASTQ = "take its sequences out first, for instance with: awk 'NR % 4 == 2' {name} > {stem}.txt"
MARKUP = (
    "take its text out first, for instance with: xmllint --xpath 'string(/)' {name} > {stem}.txt "
    "(wikiextractor for a dump of Wikipedia)"
)
FOREIGN: Mapping[str, str] = {
    **dict.fromkeys((".html", ".htm", ".xhtml", ".docx", ".rtf", ".epub", ".odt"), PANDOC),
    **dict.fromkeys((".doc", ".ppt", ".pptx", ".odp", ".pages"), OFFICE),
    **dict.fromkeys((".xls", ".xlsx", ".ods", ".numbers"), SHEET),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), ARCHIVE),
    **dict.fromkeys((".fasta", ".fa", ".faa", ".fna", ".ffn"), FASTA),
    **dict.fromkeys((".fastq", ".fq"), FASTQ),
    ".xml": MARKUP,
    ".pdf": "take its text out first, for instance with: pdftotext {name} {stem}.txt",
    ".ps": "take its text out first, for instance with: ps2ascii {name} {stem}.txt",
    **dict.fromkeys((".mobi", ".azw3"), "take its text out first, for instance with: ebook-convert {name} {stem}.txt"),
}
"""What is not read as it is, by suffix, and what to do about it."""
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


class Sources(NamedTuple):
    """The files that options name."""

    files: tuple[Path, ...]
    """Each once, sorted."""
    left_out: Mapping[str, int]
    """How many files of a folder were not taken, by a glob that takes them."""


def find_sources(patterns: Sequence[str], option: str = "--data") -> Sources:
    """Return what files, folders (searched by suffix) and globs stand for.

    Raises UserError, naming `option`, where there is none, or where a file named by itself is empty or not text.
    """
    if not patterns:
        raise UserError(f"{option}: give a file, a folder or a glob of text")
    found: dict[Path, Path] = {}
    left_out: Counter[str] = Counter()
    for pattern in patterns:
        if not pattern.strip():
            raise UserError(f"{option} {pattern!r}: give a file, a folder or a glob of text")
        path = Path(os.path.expanduser(pattern))
        if path.is_dir():
            inside = _inside(path, option)
            files = [file for file in inside if _suffix(file) in KNOWN]
            globs = Counter(_glob(path, file) for file in inside if _suffix(file) not in KNOWN)
            left_out.update(globs)
            if not files:
                takes = next((each for each, _ in globs.most_common() if may_be_text(each)), "")
                other = f"; a glob takes others: {option} '{takes}'" if takes else ""
                for file in inside if globs and not takes else ():
                    kind_of(file)  # tells what to do about the first of those that are not text
                known = " ".join(KNOWN)
                raise UserError(f"{option} {pattern}: no text in this folder (looked for {known}, not empty){other}")
        elif path.exists():
            if not path.is_file():  # to open a pipe would wait for whoever writes to it, and it can be read once only
                raise UserError(
                    f"{option} {pattern} is a pipe or a device: give a file, or pipe the text in with {option} -"
                )
            if path.stat().st_size == 0:
                raise UserError(f"{option} {pattern}: the file is empty")
            files = [path]
        else:
            _refuse_circles(path, option)
            matches = [Path(name) for name in glob.glob(str(path), recursive=True)]
            for file in matches:
                _refuse_broken(file, option)
            files = [file for file in matches if file.is_file() and file.stat().st_size]
            if not files:
                raise UserError(f"{option} {pattern}: no such file or folder" + (", or all empty" if matches else ""))
            foreign = [file for file in files if _suffix(file) in FOREIGN]
            if len(foreign) < len(files):  # one that matches nothing else is meant
                files = [file for file in files if file not in foreign]
                left_out.update(_glob(_root(pattern), file) for file in foreign)
        for file in files:
            kind_of(file)
            found[file.resolve()] = file
    return Sources(tuple(sorted(found.values())), dict(left_out))


def expand(patterns: Sequence[str], option: str = "--data") -> tuple[Path, ...]:
    """Return the files of `find_sources`."""
    return find_sources(patterns, option).files


def may_be_text(pattern: str) -> bool:
    """Return whether files that a glob of `find_sources` takes may be text, as the first of them begins."""
    found = next((Path(name) for name in glob.iglob(pattern, recursive=True) if Path(name).is_file()), None)
    if found is None or _suffix(found) in FOREIGN:
        return False
    if found.suffix.lower() in COMPRESSED:
        return True
    with found.open("rb") as file:
        head = file.read(1 << 12)
    return head.startswith(tuple(MARKS)) or b"\0" not in head


def spooled(patterns: Sequence[str], option: str, cache: Path, text_field: str) -> tuple[str, ...]:
    """Return the patterns with the file that standard input was copied to in the place of `-`.

    The file is named by what it holds, so that it is found again without a second reading.
    """
    if STDIN not in patterns:
        return tuple(patterns)
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(f"{option} -: standard input is a terminal: pipe text into it, or name a file")
    folder = cache / "stdin"
    make_folder(folder, "--cache")
    digest, partial = hashlib.sha256(), beside(folder / "text")
    try:
        with naming(folder), partial.open("xb") as file:
            head = b""
            while block := sys.stdin.buffer.read(BLOCK):
                head = head or block
                digest.update(block)
                file.write(block)
        if not head:
            raise UserError(f"{option} -: standard input is empty")
        path = folder / f"{digest.hexdigest()[:32]}{_suffix_of(head, text_field)}"
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return tuple(str(path.resolve()) if pattern == STDIN else pattern for pattern in patterns)


def _suffix_of(head: bytes, text_field: str) -> str:
    """Return the suffix of what begins so: compressed text, JSON, a table with the column `text_field`, plain text."""
    for suffix, magic in PACKED.items():
        if head.startswith(magic):
            return f".txt{suffix}"
    mark = next((mark for mark in MARKS if head.startswith(mark)), b"")
    begin = head[len(mark) :].decode(MARKS.get(mark, "utf-8"), "ignore").lstrip()
    if re.match(r'\{\s*"|\[\s*\{\s*"', begin):
        return ".jsonl"
    first = begin.split("\n", 1)[0].strip("\r")
    for suffix, separators in ((".tsv", "\t"), (".csv", ",;|")):
        if any(len(names) > 1 and text_field in names for _, names in columns_of(first, separators)):
            return suffix
    return ".txt"


def documents(paths: Iterable[Path], document: DocumentKind, text_field: str) -> Iterator[str]:
    """Yield the documents of all files in order, without blank ones; one over `PIECE` characters comes in pieces."""
    for path in paths:
        for block in blocks(path, document, text_field):
            yield from block.texts


def blocks(path: Path, document: DocumentKind, text_field: str) -> Iterator[Block]:
    """Yield one file's documents in blocks of about a megabyte, the same at each reading.

    Raises UserError, naming file and position, for what is not UTF-8, not JSON, damaged or without the text field.
    """
    match kind_of(path):
        case "parquet":
            yield from _whole(parquet_texts(path, text_field))
        case "json":
            yield from _whole(json_texts(path, text_field, lambda: _line_blocks(path, cut_lines=False)))
        case "csv" | "tsv" as kind:
            separators = "\t" if kind == "tsv" else ",;\t|"
            yield from _whole(table_texts(path, text_field, separators, lambda: _line_blocks(path, cut_lines=False)))
        case "text" if document == "line":
            yield from _lines(path)
        case "text":
            yield from _paragraphs(path, BLANK_LINES if document == "blank" else None)


def kind_of(path: Path) -> FileKind:
    """Return how a file is read, by its suffix before that of its compression; refuse what is not text by name."""
    suffix = _suffix(path)
    if suffix in FOREIGN:
        raise UserError(f"{path}: {suffix} is not read: {FOREIGN[suffix].format(name=path.name, stem=path.stem)}")
    if suffix == ".parquet":
        return "parquet"
    if suffix == ".csv":
        return "csv"
    if suffix == ".tsv":
        return "tsv"
    return "json" if suffix in RECORDS else "text"


KNOWN = (*TEXT, *RECORDS, *TABLES, ".parquet")
"""Suffixes of what is read in a folder."""


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def _inside(folder: Path, option: str) -> list[Path]:
    """Return the files in a folder, sorted, but for hidden and empty ones; a UserError names a broken link to text."""
    found = []
    for file in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        if _suffix(file) in KNOWN:
            _refuse_broken(file, option)
        if file.is_file() and file.stat().st_size:
            found.append(file)
    return found


def _refuse_broken(file: Path, option: str) -> None:
    if file.is_symlink() and not file.exists():
        raise UserError(f"{option}: {file} is a link to {os.readlink(file)}, which is not there: mend or remove it")


def _refuse_circles(pattern: Path, option: str) -> None:
    """Raise a UserError where `**` would follow a link to a folder around it: each further link doubles the way."""
    if "**" not in pattern.parts:
        return
    for folder, inside, _ in os.walk(_root(str(pattern)), followlinks=True):
        for name in inside:
            link = Path(folder, name)
            if link.is_symlink() and link.resolve() in (*(where := Path(folder).resolve()).parents, where):
                raise UserError(f"{option} {pattern}: {link} is a link to a folder around it: remove it, or name files")


def _root(pattern: str) -> Path:
    """Return the folder that a glob searches: what stands before its first wildcard."""
    parts = Path(os.path.expanduser(pattern)).parts
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))


def _glob(folder: Path, file: Path) -> str:
    """Return a glob that takes files of this one's suffix; of none, all files at its depth."""
    if file.suffix:
        return f"{folder}/**/*{file.suffix}"
    return f"{folder}/{'*/' * (len(file.relative_to(folder).parts) - 1)}*"


def _line_blocks(path: Path, cut_lines: bool = True) -> Iterator[tuple[str, int]]:
    return line_blocks(path, BLOCK, LONGEST_LINE if cut_lines else math.inf)


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
