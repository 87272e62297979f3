"""The one kind of error that a command line turns into a line on stderr, and the exit statuses."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake the user can mend: one line that names the option or file and the remedy."""


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
    except BrokenPipeError:  # the reader of a pipe has gone: nobody is left to tell
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    return 0
