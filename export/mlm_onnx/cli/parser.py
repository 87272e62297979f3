"""Parsing of command lines; an error is one line that suggests what to write instead."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from mlm_onnx.bundle.layout import MlmOnnxError

PROG = "python -m mlm_onnx"


@dataclass(frozen=True)
class Command:
    """A subcommand: its line in the command map, two examples, its options and its action."""

    summary: str
    examples: tuple[str, str]
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


class UsageError(MlmOnnxError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """An argument parser that refuses a command line with a one-line UsageError."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            *first, last = action.choices
            choose = f"choose {', '.join(first)} or {last}{nearest(str(value), action.choices)}"
            raise UsageError(f"{'/'.join(action.option_strings)} {value}: {choose}")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the options that a command line gives; --help takes precedence over any mistake."""
        known, words = self._option_string_actions, argv[: [*argv, "--"].index("--")]
        if "-h" in words or "--help" in words:
            self.print_help()
            self.exit()
        for option in (word.partition("=")[0] for word in words):
            if option.startswith("--") and " " not in option and option not in known:
                raise UsageError(f"unknown option {option}{nearest(option, known) or f' (see {self.prog} --help)'}")
        try:
            return self.parse_args(argv)
        except argparse.ArgumentError as error:
            if error.argument_name is None:
                self.error(error.message)
            raise UsageError(f"{error.argument_name} {error.message}") from None


def command_map(commands: Mapping[str, Command]) -> str:
    """Return the text that is printed if no command is given."""
    lines = [f"usage: {PROG} COMMAND … or mlm-onnx COMMAND …", "", "Answer masked queries from an ONNX bundle.", ""]
    lines += ["commands:", *(f"  {name:<8}  {command.summary}" for name, command in commands.items())]
    lines += ["", "examples:", *(f"  {commands[name].examples[0]}" for name in ("convert", "fill"))]
    return "\n".join([*lines, "", f"{PROG} COMMAND --help shows its options and examples, --version the versions."])


def read(commands: Mapping[str, Command], name: str, argv: Sequence[str]) -> argparse.Namespace:
    """Return a command's options; raise UsageError if the command is unknown, or an option or a value is wrong."""
    if name not in commands:
        close = nearest(name, commands) or f": choose {', '.join(commands)}"
        raise UsageError(f"unknown command {name}{close}")
    parser = Parser(
        prog=f"{PROG} {name}",
        description=commands[name].summary.capitalize() + ".",
        epilog="\n  ".join(["examples:", *commands[name].examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    commands[name].declare(parser)
    return parser.read(argv)


def at_least_one(text: str) -> int:
    """Parse a positive integer."""
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text}: expected an integer of at least 1")


def in_utf8(text: str) -> str:
    """Return an argument read as UTF-8, whatever the locale: in some, Python reads only ASCII."""
    return os.fsencode(text).decode("utf-8", "surrogateescape")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean X?' if a known word is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
