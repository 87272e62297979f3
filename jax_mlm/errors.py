"""The one kind of error that a command line turns into a line on stderr, its wording, and the exit statuses."""

from __future__ import annotations

import difflib
import errno
import io
import os
import re
import reprlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from jax_mlm.signals import number_of, requests_to_stop, stop_of

LONGEST = 2000
"""Characters of a message."""
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80


class UserError(ValueError):
    """A mistake the user can fix: one line that names the option or file and the remedy."""


def warn(line: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {one_line(line)}", file=sys.stderr, flush=True)


def shown(value: object) -> str:
    """Return a value as a message shows it: long ones are cut, deep ones too, which `repr` cannot even walk."""
    return _SHOWN.repr(value)


def one_line(text: str) -> str:
    """Return a message in one line that fits a screen; line ends and the like, as in a file's name, are escaped."""
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def described(error: OSError, path: str | os.PathLike[str] = "") -> str:
    """Return one line about what the system refused: the path, the reason, and the room where a disk is full."""
    path = os.fsdecode(path or error.filename or "")
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
    """Run a command; return 0, 2 after one line on stderr about the user's mistake, or 128 + the signal that ended it.

    SIGINT, SIGTERM and SIGHUP are answered in the same way: one line, after what was begun has been cleaned up.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what the terminal's encoding does not
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        with requests_to_stop():
            act()
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the pipe's reader is gone: there is nobody to report to
        _discard_output()
        return 141
    except (Exception, KeyboardInterrupt) as error:
        if (stop := stop_of(error)) is not None:
            number = number_of(stop)
            by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
            _say_last(f"stopped{by}{': ' + str(stop) if str(stop) else ''}")
            return 128 + number
        if isinstance(error, OSError) and error.errno is not None:  # without a number it is a defect: a traceback
            print(f"error: {one_line(described(error))}", file=sys.stderr)
            return 2
        if is_out_of_memory(error):
            reason = f" ({one_line(first_line(error))})" if str(error) else ""
            print(f"error: not enough memory{reason}: give a smaller --batch, or fewer --workers", file=sys.stderr)
            return 2
        raise
    return 0


def _say_last(line: str) -> None:
    """Print a line on stderr, unless its reader is gone, as a terminal is after SIGHUP."""
    try:
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:
        _discard_output()


def _discard_output() -> None:
    """Let nothing fail that is printed from now on."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
