"""What a save needs, why it failed, and silence about what we report ourselves."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from jax_mlm.errors import errno_of, first_line, megabytes

FAILED = (OSError, ValueError, RuntimeError)
"""What Orbax raises when it cannot write; tensorstore turns an error of the system into a ValueError."""


def needed(state: Any) -> int:  # any tree of arrays
    """Return the bytes that a checkpoint of these arrays takes at most."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return size + size // 50 + (64 << 10)


def lacking(folder: Path, state: Any) -> str:
    """Return why a checkpoint would not fit into the folder, or an empty string."""
    free = _free(folder)
    return "" if free is None or free >= needed(state) else os.strerror(errno.ENOSPC)


def _free(folder: Path) -> int | None:
    """Return the bytes that are free; None where the system does not tell."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def reason_of(error: BaseException) -> str:
    """Return one line that says why a save failed."""
    if (number := errno_of(error)) is not None:
        return os.strerror(number)
    return first_line(error) or type(error).__name__


def not_saved(folder: Path, step: int | None, reason: str, state: Any) -> str:
    """Return the line about a save that failed."""
    free = "an unknown amount" if (found := _free(folder)) is None else megabytes(found)
    return (
        f"step {step} could not be saved in {folder} ({reason}): a checkpoint needs {megabytes(needed(state))}, "
        f"and {free} is free there"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Leave it to us to report what fails: without it, Orbax and tensorstore print tracebacks of their own."""
    loggers, before = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook

    def hook(unraisable: Any) -> None:  # sys.UnraisableHookArgs, which exists for type checkers only
        if "Event loop is closed" not in str(unraisable.exc_value):  # writes that end after one of them has failed
            before(unraisable)

    def shown(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname and "exception was never retrieved" not in record.getMessage()

    for logger in loggers:
        logger.addFilter(shown)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for logger in loggers:
            logger.removeFilter(shown)
