"""Text sources to token files on disk: streamed, parallel, restartable, cached by content."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import DataConfig
from jax_mlm.data.decoding import COMPRESSED
from jax_mlm.data.encoding import encode_in_order
from jax_mlm.data.sources import blocks, kind_of
from jax_mlm.data.token_files import JOURNAL, Chunk, Damaged, TokenFiles, Writer, open_files
from jax_mlm.data.tokenizer import Vocabulary, as_text
from jax_mlm.errors import UserError, warn
from jax_mlm.files import discard, make_folder, naming, patience, publish, write_atomically
from jax_mlm.parallel.cores import cores
from jax_mlm.run.lock import locked

FORMATS = (1, 2)
"""Part of the cache's key, the newest last: one more when the same text gives other files. A resumed run keeps its own.
Before 2, what looks like a special token in a text was one."""
CHUNK = 1 << 19
"""Characters at which a piece of work is full; a block of a large file is one."""
SMALL = 8 << 20
"""Bytes of text below which starting processes costs more than they save."""
MANY = 1000
"""Texts up to which each is recorded by itself."""
LINE_EVERY = 10.0
"""Seconds between lines of progress without a terminal."""
MOST_WORKERS = 16
"""Processes when --workers leaves the number open: each needs about 100 MB."""

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with the bytes of the files read so far, and their total."""


def prepare(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    cfg: DataConfig,
    cache: Path,
    progress: Progress | None = None,
    before: str = "",
    began: Mapping[str, str] | None = None,
) -> TokenFiles:
    """Return the token files of these texts, from the cache or made now.

    `before` is the fingerprint of the text that a resumed run began with: where an earlier format has it, that is read.
    `began` are the sources of that text, which must be the same.

    An interrupted preparation continues where it was; processes that want the same files wait for the one that makes
    them.

    Raises:
        UserError: text that cannot be read, that is not what the run began with, or no text at all.
    """
    paths = tuple(map(Path, paths))
    content = tokenizer.to_str()
    states = [_state(path) for path in paths]
    cache = cache / "tokens"
    make_folder(cache, "--cache")
    sources = _sources(paths, cache)
    if began and _changes(began, _named(paths, sources)):
        sources = _sources(paths, cache, trusting=False)  # it may be the note of a hash that is damaged
    named = _named(paths, sources)
    keys = {_key(sources, content, cfg, format): format for format in FORMATS}
    key = before if before in keys else list(keys)[-1]
    if began and (changes := _changes(began, named)):
        raise UserError(f"--data has changed since the run began: {changes}; restore it, or start a new run")
    if before and not began and key != before:
        warn(f"the text or tokenizer may have changed since the run began (fingerprint {before[:12]} → {key[:12]})")
    folder = cache / key[:32]
    if (files := _kept(folder, key)) is not None:
        return replace(files, sources=named)
    lock = cache / f"{key[:32]}.lock"
    with locked(lock, "--cache", folder, patient="prepares the same text"):
        if (files := _kept(folder, key, lambda damage: warn(f"{folder} is damaged ({damage}): made anew"))) is not None:
            return replace(files, sources=named)
        partial = folder.with_suffix(".partial")
        dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.uint32)
        try:
            with naming(folder), Writer(partial, dtype) as writer:
                reader = as_text(tokenizer) if keys[key] > 1 else tokenizer
                _write_tokens(writer, reader, paths, cfg, progress)
                if states != [_state(path) for path in paths]:
                    raise UserError("--data: the text changed while it was read; run again when nothing writes to it")
                if writer.tokens == 0:
                    raise UserError(f"{', '.join(map(str, paths[:3]))}: no text in it, only space")
                writer.finish(key, [path.name for path in paths], vocabulary)
        except UserError:  # fixing the text changes the key, so this partial would never be reused
            shutil.rmtree(partial, ignore_errors=True)
            raise
        discard(folder)  # it would have been opened if it were whole
        publish(partial, folder)
        (folder / JOURNAL).unlink(missing_ok=True)
    files = open_files(folder, key, check=False)
    if files is None:
        raise RuntimeError(f"{folder}: the token files just written cannot be read back")
    return replace(files, sources=named)


def _kept(folder: Path, key: str, say: Callable[[str], None] = lambda damage: None) -> TokenFiles | None:
    """Return the token files in the cache; None, and say why, where they are damaged."""
    try:
        return open_files(folder, key)
    except Damaged as damage:
        say(str(damage))
        return None


def _write_tokens(
    writer: Writer,
    tokenizer: Tokenizer,
    paths: Sequence[Path],
    cfg: DataConfig,
    progress: Progress | None,
) -> None:
    """Encode and append what the writer does not have yet."""
    total = sum(path.stat().st_size for path in paths)
    with display("tokenising", total) if progress is None else nullcontext(progress) as report:
        chunks = islice(_chunks(paths, cfg), writer.chunks, None)
        with closing(encode_in_order(chunks, tokenizer, tokenizer.to_str(), _workers(paths, cfg))) as encoding:
            for chunk, encoded in encoding:
                writer.append(encoded, chunk)
                report(chunk.consumed, total)


# What has been prepared


def _state(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


class _Source(NamedTuple):
    digest: str
    """Hash of the file's bytes."""
    kind: str
    packing: str


def _sources(paths: Sequence[Path], cache: Path, trusting: bool = True) -> list[_Source]:
    """Return what the files hold and how they are read; the hash of a large one is looked up, if that is trusted."""
    known_path = cache / "hashes.json"
    known: dict[str, list[int | str]] = {}
    with suppress(OSError, ValueError, AttributeError):
        read = json.loads(known_path.read_text())
        known = {name: entry for name, entry in read.items() if isinstance(entry, list) and len(entry) == 4}
    before, sources = len(known), []
    for path in paths:
        name, state = str(path.resolve()), list(_state(path))
        entry = known.get(name)
        if entry is None or entry[:-1] != state or not trusting:
            try:
                with patience(f"reading {path}"), path.open("rb") as file:
                    entry = [*state, hashlib.file_digest(file, "sha256").hexdigest()]
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror})") from error
            if state[0] > SMALL:  # what is read in a moment is read anew
                known[name], before = entry, -1
        packing = path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""
        sources.append(_Source(str(entry[-1]), kind_of(path), packing))
    if before != len(known):
        write_atomically(known_path, json.dumps(known))
    return sources


def _named(paths: Sequence[Path], sources: Sequence[_Source]) -> dict[str, str]:
    """Return what is recorded of the texts: the beginning of each one's hash, or of that of all if they are many."""
    if len(paths) > MANY:
        return {f"{len(paths)} files": hashlib.sha256("".join(s.digest for s in sources).encode()).hexdigest()[:16]}
    return {str(path): source.digest[:16] for path, source in zip(paths, sources, strict=True)}


def _changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return how the texts differ, the first few of them by name."""
    lines = [f"{path} is gone" for path in before if path not in now]
    lines += [f"{path} is new" for path in now if path not in before]
    lines += [f"{path} ({before[path]} → {now[path]})" for path in now if now[path] != before.get(path, now[path])]
    return ", ".join([*lines[:3], *([f"and {len(lines) - 3} more"] if len(lines) > 3 else [])])


def _key(sources: Sequence[_Source], tokenizer: str, cfg: DataConfig, format: int) -> str:
    """Hash all that shapes the files; where the texts lie, and what they are called, does not."""
    kinds = {source.kind for source in sources}
    shape = {
        "format": format,
        "sources": sources,
        "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "document": cfg.document if "text" in kinds else None,
        "text_field": cfg.text_field if kinds - {"text"} else None,
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


# What is being prepared


def _chunks(paths: Sequence[Path], cfg: DataConfig) -> Iterator[Chunk]:
    """Cut all texts into pieces of work, always the same ones."""
    texts: list[str] = []
    starts: list[bool] = []
    digests: list[bytes] = []
    size = before = consumed = 0
    document = hashlib.blake2b(digest_size=8)
    for path in paths:
        for block in awaited(path, blocks(path, cfg.document, cfg.text_field)):
            for text, start in zip(block.texts, block.starts, strict=True):
                if start:
                    document = hashlib.blake2b(digest_size=8)
                document.update(text.encode())
                digests.append(document.digest())
            texts += block.texts
            starts += block.starts
            size += sum(map(len, block.texts))
            consumed = before + block.consumed
            if size >= CHUNK:
                yield Chunk(texts, starts, np.frombuffer(b"".join(digests), "<u8"), consumed)
                texts, starts, digests, size = [], [], [], 0
        before += path.stat().st_size
    if texts:
        yield Chunk(texts, starts, np.frombuffer(b"".join(digests), "<u8"), consumed)


def awaited(path: Path, read: Iterable[T]) -> Iterator[T]:
    """Yield what is read from a file; lines on stderr name it while that stalls."""
    rest = iter(read)
    while True:
        with patience(f"reading {path}"):
            one = next(rest, None)
        if one is None:
            return
        yield one


def _workers(paths: Sequence[Path], cfg: DataConfig) -> int:
    """Return how many processes tokenise; 0 for little text, which is done in this one."""
    packed = sum(
        path.stat().st_size * (1 if path.suffix.lower() not in (*COMPRESSED, ".parquet") else 4) for path in paths
    )
    if packed < SMALL:
        return 0
    return cfg.workers or min(cores(), MOST_WORKERS)


@contextmanager
def display(doing: str, total: int) -> Iterator[Progress]:
    """Show a bar with rate and time left on a terminal, and a line now and then elsewhere; on stderr."""
    if not sys.stderr.isatty():
        began = last = time.monotonic()

        def line(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= LINE_EVERY:
                last, rate = now, done / (now - began)
                left = (total - done) / rate if rate else 0.0
                print(
                    f"{doing}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)
