"""The one kind of error that a command line turns into a line on stderr and exit status 2."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake the user can mend: one line that names the option or file and the remedy."""
