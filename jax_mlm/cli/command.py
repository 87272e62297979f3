"""Commands: from the arguments of a command line to a config, a function and an exit status."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from jax_mlm.cli.options import Groups, build, declare, options_of
from jax_mlm.cli.parser import Given, Parser
from jax_mlm.errors import exit_status, nearest
from jax_mlm.version import versions

T = TypeVar("T")
Main = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Command(Generic[T]):
    """A function of a config, as a command; --help and --version are answered before anything else is done."""

    prog: str
    kind: type[T]
    run: Callable[[T], object]
    examples: str
    defaults: Callable[[Given], T | None] = lambda given: None
    """Return the config that the given options override; None stands for the fields' own defaults."""
    shown: Callable[[Sequence[str]], T | None] = lambda argv: None
    """Return the config whose values --help shows as defaults."""
    groups: Groups = field(default_factory=dict)
    """The options that --help shows; empty for all of them."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a command line, by default that of the process; return the exit status."""
        argv = sys.argv[1:] if argv is None else argv
        if asked := {"-h", "--help", "--help-all"}.intersection(argv):
            return exit_status(lambda: print(self.page(argv, "--help-all" in asked), end=""))
        return exit_status(lambda: print(versions()) if "--version" in argv else self.run(self.read(argv)))

    def read(self, argv: Sequence[str]) -> T:
        """Return the config that a command line gives; raise a UserError if it is wrong."""
        given = self.parser().read(argv)
        return build(self.kind, given, self.defaults(given))

    def page(self, argv: Sequence[str] = (), everything: bool = False) -> str:
        """Return the help of a command line: the options of the groups if there are any, or everything."""
        return self.parser(self.shown(argv), everything).format_help()

    def parser(self, base: T | None = None, everything: bool = True) -> Parser:
        """Return the parser of everything or of the groups alone; its help shows the values of `base` as defaults."""
        words = [settings["metavar"] for *_, settings in options_of(self.kind) if "dest" not in settings]
        usage = " ".join([self.prog, *words, "[OPTIONS]"])
        about = (inspect.getdoc(self.kind) or "").split("\n\n")[0].replace("\n", " ")
        parser = Parser(prog=self.prog, usage=usage, description=about, epilog=self.examples)
        declare(parser, self.kind, base, self.groups, everything or not self.groups)
        add = partial(parser.add_argument_group("help").add_argument, action="store_true", default=argparse.SUPPRESS)
        add("-h", "--help", help="Show the most common options." if self.groups else "Show this help.")
        if self.groups:
            add("--help-all", help="Show every option.")
        add("--version", help="Show the versions of jax_mlm and of JAX.")
        return parser


def run_one_of(commands: Mapping[str, Main], page: str, argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names, or print the page that lists them; return the exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in commands:
        return commands[name](rest)
    if name in ("-h", "--help", "--version"):
        return exit_status(lambda: print(versions() if name == "--version" else page))
    close = nearest(name, commands) or f": choose {', '.join(commands)}"
    print(f"error: unknown command {name}{close}", file=sys.stderr)
    return 2
