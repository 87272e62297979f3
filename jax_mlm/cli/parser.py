"""argparse with help as wide as the terminal, and one-line errors that suggest the nearest valid word."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from jax_mlm.errors import UserError, nearest, unknown_choice

Given = Mapping[str, Any]  # field → value, for the options that a command line gives; argparse has made its type
COLUMN, NARROWEST, WIDEST = 27, 50, 100


class Page(argparse.HelpFormatter):
    """A help formatter that wraps paragraphs to the terminal's width and leaves multi-line texts as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def _is_meant(following: Sequence[str], action: argparse.Action) -> bool:
    """Return whether the word after an option that may stand alone is its value, perhaps misspelt."""
    choices = [str(choice) for choice in action.choices or () if choice]
    return any(word in choices or nearest(word, choices) for word in following)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors of one line; it takes --eval_every for --eval-every."""

    def __init__(self, prog: str, usage: str, description: str, epilog: str) -> None:
        width = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
        page = partial(Page, max_help_position=COLUMN, width=width)
        super().__init__(
            prog, usage, description, epilog, formatter_class=page,
            add_help=False, allow_abbrev=False, exit_on_error=False,
        )  # fmt: skip
        self._negative_number_matcher = re.compile(r"-\.?\d")  # -1e-3 is a value too, as it is from Python 3.14 on

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            raise unknown_choice("/".join(action.option_strings), str(value), action.choices)

    def _get_value(self, action: argparse.Action, arg_string: str) -> object:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            expected = "an integer" if action.type is int else "a number"
            raise UserError(f"{'/'.join(action.option_strings)} {arg_string}: expected {expected}") from None

    def read(self, argv: Sequence[str]) -> Given:
        """Return the values of a command line by field; raise a UserError if one is wrong or missing."""
        words, known = list(argv), self._option_string_actions
        for at, word in enumerate(words[: [*words, "--"].index("--")]):
            written, equals, value = word.partition("=")
            if word.startswith("--"):
                words[at] = (name := written.replace("_", "-")) + equals + value
                if name not in known:
                    raise UserError(f"unknown option {written}{nearest(name, known) or f' (see {self.prog} --help)'}")
                if not equals and known[name].nargs == "?" and not _is_meant(words[at + 1 : at + 2], known[name]):
                    words[at] = f"{name}={known[name].const}"
        try:
            given = vars(self.parse_args(words))
        except argparse.ArgumentError as error:
            if error.argument_name is None:
                self.error(error.message)
            raise UserError(f"{error.argument_name} {error.message}") from None
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
