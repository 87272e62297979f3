"""Text sources to token files on disk: streamed, parallel, restartable, cached by content."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import DataConfig
from jax_mlm.data.decoding import COMPRESSED
from jax_mlm.data.encoding import encode_in_order
from jax_mlm.data.sources import blocks, kind_of
from jax_mlm.data.token_files import JOURNAL, Chunk, TokenFiles, Writer, open_files
from jax_mlm.data.tokenizer import Vocabulary, as_text
from jax_mlm.errors import UserError
from jax_mlm.files import beside, discard, make_folder, publish, write_atomically
from jax_mlm.parallel.cores import cores

FORMATS = (1, 2)
"""Part of the cache's key, the newest last: one more when the same text gives other files. A resumed run keeps its own.
Before 2, what looks like a special token in a text was one."""
CHUNK = 1 << 19
"""Characters at which a piece of work is full; a block of a large file is one."""
SMALL = 8 << 20
"""Bytes of text below which starting processes costs more than they save."""
LINE_EVERY = 10.0
"""Seconds between lines of progress without a terminal."""
MOST_WORKERS = 16
"""Processes when --workers leaves the number open: each needs about 100 MB."""

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
) -> TokenFiles:
    """Return the token files of these texts, from the cache or made now.

    `before` is the fingerprint of the text that a resumed run began with: where an earlier format has it, that is read.

    An interrupted preparation continues where it was; processes that want the same files wait for the one that makes
    them.

    Raises:
        UserError: text that cannot be read, or no text at all.
    """
    paths = tuple(map(Path, paths))
    content = tokenizer.to_str()
    states = [_state(path) for path in paths]
    cache = cache / "tokens"
    make_folder(cache, "--cache")
    sources = _sources(paths, cache)
    keys = {_key(sources, content, cfg, format): format for format in FORMATS}
    key = before if before in keys else list(keys)[-1]
    folder = cache / key[:32]
    if (files := open_files(folder, key)) is not None:
        return files
    with _lock(cache / f"{key[:32]}.lock") as alone:
        if (files := open_files(folder, key)) is not None:
            return files
        partial = folder.with_suffix(".partial") if alone else beside(folder)
        dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.uint32)
        try:
            with Writer(partial, dtype) as writer:
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
        try:
            publish(partial, folder)
        except OSError:  # where files cannot be locked, another process may have been first
            shutil.rmtree(partial, ignore_errors=True)
        (folder / JOURNAL).unlink(missing_ok=True)
    files = open_files(folder, key)
    if files is None:
        raise RuntimeError(f"{folder}: the token files just written cannot be read back")
    return files


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


def _sources(paths: Sequence[Path], cache: Path) -> list[_Source]:
    """Return what the files hold and how they are read; the hash of a large one is looked up."""
    known_path = cache / "hashes.json"
    known: dict[str, list[int | str]] = {}
    with suppress(OSError, ValueError):
        known = json.loads(known_path.read_text())
    before, sources = len(known), []
    for path in paths:
        name, state = str(path.resolve()), list(_state(path))
        entry = known.get(name)
        if entry is None or entry[:-1] != state:
            try:
                with path.open("rb") as file:
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


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold a lock that ends with this process; give False, at once, where the file system has none."""
    with path.open("w", encoding="utf-8") as file:
        try:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("another process prepares the same text: waiting for it", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            yield False
        else:
            yield True


# What is being prepared


def _chunks(paths: Sequence[Path], cfg: DataConfig) -> Iterator[Chunk]:
    """Cut all texts into pieces of work, always the same ones."""
    texts: list[str] = []
    starts: list[bool] = []
    digests: list[bytes] = []
    size = before = consumed = 0
    document = hashlib.blake2b(digest_size=8)
    for path in paths:
        for block in blocks(path, cfg.document, cfg.text_field):
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


@contextmanager
def patience(doing: str) -> Iterator[bool]:
    """Print a line now and then while something takes long; give True at a terminal, where it has bars of its own."""
    if sys.stderr.isatty():
        yield True
        return
    began, done = time.monotonic(), threading.Event()

    def wait() -> None:
        while not done.wait(LINE_EVERY):
            print(f"{doing}: {time.monotonic() - began:.0f} s so far", file=sys.stderr, flush=True)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield False
    finally:
        done.set()
        thread.join()
