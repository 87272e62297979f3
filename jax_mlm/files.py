"""Write files and folders that appear whole or not at all (only this module renames); locate the cache folder."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jax_mlm.config import TrainConfig
from jax_mlm.errors import UserError


def make_folder(folder: Path, option: str) -> None:
    """Make a folder and its parents; if that is not possible, a UserError names the option."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder}: cannot be written ({error.strerror})") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside the file, then rename: no reader sees half of it, and no crash leaves half of it."""
    partial = beside(path)
    try:
        with partial.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # or the rename may reach the disk before the content does
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill: it becomes `folder` when the block ends, and is deleted if the block fails."""
    partial = beside(folder.absolute())
    partial.mkdir(parents=True)
    try:
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


def cache_folder(config: TrainConfig) -> Path:
    """Return the folder that keeps prepared tokens and compiled programs between runs."""
    named = config.corpus.cache or os.environ.get("JAX_MLM_CACHE")
    return Path(os.path.expanduser(named or "~/.cache/jax_mlm"))
