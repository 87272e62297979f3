"""The one kind of error that a command line turns into a line on stderr, its wording, and the exit statuses."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable

from jax_mlm.signals import number_of, requests_to_stop, stop_of


class UserError(ValueError):
    """A mistake the user can fix: one line that names the option or file and the remedy."""


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
    try:
        with requests_to_stop():
            act()
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the pipe's reader is gone: there is nobody to report to
        _discard_output()
        return 141
    except (Exception, KeyboardInterrupt) as error:
        if (stop := stop_of(error)) is None:
            raise
        number = number_of(stop)
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        _say_last(f"stopped{by}{': ' + str(stop) if str(stop) else ''}")
        return 128 + number
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
