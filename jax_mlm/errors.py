"""The one kind of error that a command line turns into a line on stderr, its wording, and the exit statuses."""

from __future__ import annotations

import difflib
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake the user can fix: one line that names the option or file and the remedy."""


def warn(line: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


def described(error: OSError, path: str | os.PathLike[str] = "") -> str:
    """Return one line about what the system refused: the path, the reason, and the room where a disk is full."""
    path = path or error.filename or ""
    reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
    line = f"{path}: {reason}" if path else reason
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return line
    folder = next(folder for folder in (Path(path), *Path(path).absolute().parents) if folder.is_dir())
    room = [*getattr(error, "__notes__", ()), f"{megabytes(shutil.disk_usage(folder).free)} free"]
    return f"{line} ({', '.join(room)}): make room there"


def errno_of(error: BaseException) -> int | None:
    """Return the system's number for an error, which tensorstore, safetensors and tokenizers put into their texts."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='?(\d+)|[oO][sS] error (\d+)", str(error))
    return int(found[1] or found[2]) if found and not isinstance(error, UserError) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of the machine, or of a device, is at its end."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error))
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, not too long to be read."""
    return next(iter(str(error).splitlines()), "")[:200]


def megabytes(size: float) -> str:
    """Return a size as people read it."""
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e3:,.0f} kB"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' if a known word is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def unknown_choice(option: str, word: str, choices: Iterable[str]) -> UserError:
    """Return the error for a word that is not among an option's choices."""
    *rest, last = filter(None, choices)
    return UserError(f"{option} {word}: choose {', '.join(rest)} or {last}{nearest(word, [*rest, last])}")


def exit_status(act: Callable[[], object]) -> int:
    """Run a command; return 0, or 2 after one line on stderr about the user's mistake."""
    try:
        act()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped{': ' + str(stop) if str(stop) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the pipe's reader is gone: there is nobody to report to
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    except OSError as error:
        if error.errno is None:  # not from the operating system, so a defect: keep the traceback
            raise
        print(f"error: {described(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f" ({first})" if (first := first_line(error)) else ""
        print(f"error: not enough memory{reason}: give a smaller --batch, or fewer --workers", file=sys.stderr)
        return 2
    return 0
