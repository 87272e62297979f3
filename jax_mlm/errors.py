"""The one kind of error that a command line turns into a line on stderr, its wording, and the exit statuses."""

from __future__ import annotations

import difflib
import io
import os
import reprlib
import sys
from collections.abc import Callable, Iterable

LONGEST = 2000
"""Characters of a message."""
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 80


class UserError(ValueError):
    """A mistake the user can fix: one line that names the option or file and the remedy."""


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what the terminal's encoding does not
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        act()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped{': ' + str(stop) if str(stop) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the pipe's reader is gone: there is nobody to report to
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    except OSError as error:
        if error.errno is None or error.strerror is None:  # not from the operating system: a defect
            raise
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        print(f"error: {one_line(where + error.strerror)}", file=sys.stderr)
        return 2
    return 0
