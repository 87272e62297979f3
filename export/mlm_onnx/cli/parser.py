"""Command lines: declared, read, and refused in one line that says what to write instead."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

import difflib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

PROG = "python -m mlm_onnx"


@dataclass(frozen=True)
class Command:
    """A subcommand: its line in the map, two examples, its options, and what it does."""

    summary: str
    examples: tuple[str, str]
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


class UsageError(ValueError):
    """A command line that cannot be understood."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def command_map(commands: Mapping[str, Command]) -> str:
    """What is shown when no command is given."""
    lines = [f"usage: {PROG} COMMAND …", "", "Answers masked queries from an ONNX bundle.", "", "commands:"]
    lines += [f"  {name:<8}  {command.summary}" for name, command in commands.items()]
    lines += ["", "examples:", *(f"  {commands[name].examples[0]}" for name in ("convert", "fill"))]
    return "\n".join([*lines, "", f"{PROG} COMMAND --help shows its options and examples; --version the versions."])


def versions() -> str:
    """One line: this distribution and what it computes with."""
    from importlib.metadata import PackageNotFoundError, version  # a query starts faster without

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed as a package"

    return f"mlm_onnx {installed('mlm-onnx')}, onnxruntime {installed('onnxruntime')}"


def read(commands: Mapping[str, Command], name: str, argv: Sequence[str]) -> argparse.Namespace:
    """The options of the command of this name.

    Raises:
        UsageError: there is no such command, or an option or a value of one is wrong.
    """
    if name not in commands:
        close = _nearest(name, list(commands)) or f": choose {', '.join(commands)}"
        raise UsageError(f"unknown command {name}{close}")
    command = commands[name]
    parser = _Parser(
        prog=f"{PROG} {name}",
        description=command.summary.capitalize() + ".",
        epilog="examples:\n  " + "\n  ".join(command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.declare(parser)
    known = {option: action for action in parser._actions for option in action.option_strings}
    for word, following in itertools.zip_longest(argv, argv[1:]):
        if word == "--":
            break
        if not word.startswith("--"):
            continue
        option, equals, value = word.partition("=")
        if option not in known:
            raise UsageError(
                f"unknown option {option}{_nearest(option, list(known)) or f' (see {parser.prog} --help)'}"
            )
        given, choices = value if equals else following, known[option].choices
        if choices is not None and given is not None and given not in choices:
            close = _nearest(given, list(choices))
            raise UsageError(f"{option} {given} is unknown: choose {' or '.join(choices)}{close}")
    return parser.parse_args(argv)


def at_least_one(text: str) -> int:
    """The type of an option that counts."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _nearest(word: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, choices, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))
