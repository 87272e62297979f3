"""Write files and folders that appear whole or not at all (only this module renames); locate the cache folder."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jax_mlm.config import TrainConfig
from jax_mlm.errors import UserError, described, errno_of, megabytes


def make_folder(folder: Path, option: str) -> None:
    """Make a folder and its parents; if that is not possible, a UserError names the option."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {described(error, folder)}") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the file, then rename: no reader sees half of it, and no crash leaves half of it.

    What UTF-8 cannot hold is replaced: half of an escaped pair, or bytes of a file's name.
    """
    partial, body = beside(path), content.encode("utf-8", "replace") if isinstance(content, str) else content
    with naming(path, len(body)):
        try:
            with partial.open("xb", buffering=0) as file:
                rest = memoryview(body)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())  # or the rename may reach the disk before the content does
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path, need: int | None = None) -> Iterator[None]:
    """Give an error of the system the path, which it leaves out when a disk is full, and what was needed there.

    Libraries in other languages put the system's number into a text: that becomes an OSError again.
    """
    try:
        yield
    except Exception as error:
        number = errno_of(error)
        of_path = str(getattr(error, "filename", None) or path).startswith(str(path.parent))
        if number is None or not of_path:
            raise
        named = OSError(number, os.strerror(number), str(path))
        if need is not None:
            named.add_note(f"{megabytes(need)} needed")
        raise named from error


@contextmanager
def new_folder(folder: Path, need: int | None = None) -> Iterator[Path]:
    """Yield a folder to fill: it becomes `folder` when the block ends, and is deleted if the block fails.

    `need` is the size of what goes in, as far as it is known.
    """
    partial = beside(folder.absolute())
    with naming(folder):
        partial.mkdir(parents=True)
    try:
        with naming(folder, need):
            yield partial
        publish(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def publish(partial: Path, final: Path) -> None:
    """Rename a finished file or folder; a folder only to what is free or an empty folder, else OSError."""
    if final.is_dir():
        final.rmdir()
    partial.replace(final)


def discard(folder: Path) -> None:
    """Rename a folder, then delete it, so that nobody sees half of it; it may be gone already."""
    unwanted = beside(folder)
    with suppress(OSError):
        folder.rename(unwanted)
    shutil.rmtree(unwanted, ignore_errors=True)


def beside(path: Path) -> Path:
    """Return a hidden name in the same folder that no other thread, process or host uses."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def is_partial(path: Path) -> bool:
    """Return whether a name is one of `beside`: of something unfinished, or about to be deleted."""
    return re.fullmatch(r"\..+\.[0-9a-f]{16}", path.name) is not None


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file: it finds what disks and copies do to it, at the speed of reading."""
    block, crc = bytearray(1 << 20), 0
    with naming(path), path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            crc = zlib.crc32(memoryview(block)[:size], crc)
    return crc


def aside(path: Path) -> Path:
    """Return a free name beside a damaged file or folder, under which it is neither used nor lost."""
    names = (f"{path.name}.damaged{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    return next(new for name in names if not (new := path.with_name(name)).exists())


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to a free name, and return it."""
    return path.rename(aside(path))


@contextmanager
def patience(doing: str, every: float = 30.0) -> Iterator[None]:
    """Print a line on stderr now and then while something takes long: a disk or network that stalls gets a name."""
    began, done = time.monotonic(), threading.Event()

    def wait() -> None:
        while not done.wait(every):
            print(f"{doing}: {time.monotonic() - began:.0f} s so far", file=sys.stderr, flush=True)

    thread = threading.Thread(target=wait, name="patience", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def cache_folder(config: TrainConfig) -> Path:
    """Return the folder that keeps prepared tokens and compiled programs between runs."""
    named = config.corpus.cache or os.environ.get("JAX_MLM_CACHE")
    return Path(os.path.expanduser(named or "~/.cache/jax_mlm"))
