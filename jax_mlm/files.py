"""Folders and files: the cache, and writing so that a reader or a kill never sees half a file."""

from __future__ import annotations

import os
from pathlib import Path

from jax_mlm.config import TrainConfig
from jax_mlm.errors import UserError


def make_folder(folder: Path, option: str) -> None:
    """Makes it, and those above it; a UserError names the option where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option} {folder}: cannot be written ({error.strerror})") from error


def write_atomically(path: Path, text: str) -> None:
    """Writes beside the file and renames: a reader, or a kill, never sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def cache_folder(config: TrainConfig) -> Path:
    """Where prepared tokens are kept between runs."""
    named = config.corpus.cache or os.environ.get("JAX_MLM_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "jax_mlm"
