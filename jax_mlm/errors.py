"""The one kind of error that a command line turns into a line on stderr, its wording, and the exit statuses."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UserError(ValueError):
    """A mistake the user can fix: one line that names the option or file and the remedy."""


def warn(line: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


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
    return 0
