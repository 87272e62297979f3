"""The edge: command lines in, one clear line for a mistake."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from jax_mlm.cli.help import Groups, check, options_of, render
from jax_mlm.errors import UserError
from jax_mlm.version import package_version

T = TypeVar("T")
HELP = {"-h", "--help", "--help-all"}


def parse(prog: str, kind: type[T], argv: Sequence[str], default: T | None = None) -> T:
    """Options → a config of class `kind`; a bad option is a UserError of one line."""
    options = options_of(kind, default)
    check(prog, options, argv)
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=list(argv), prog=prog, config=(tyro.conf.OmitArgPrefixes,), **kwargs)
    except SystemExit as stop:
        if not stop.code:
            raise
        line = _in_one_line(said.getvalue())
        if stray := re.match(r"Unrecognized options: (.+)", line):
            line = f"{stray[1]} belongs to no option ({prog} --help lists them)"
        if missing := [o for o in options if o.positional and re.search(rf"Missing from .*: .*\b{o.name}\b", line)]:
            text = missing[0].text.rstrip(".")
            line = f"{missing[0].name} is missing: {text[0].lower()}{text[1:]} (see {prog} --help)"
        raise UserError(line) from None


def _in_one_line(box: str) -> str:
    """The text of tyro's framed message, up to its first rule."""
    lines, rows = [], re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    for line in rows if re.search(r"[╭┏]", box) else rows[2:]:  # without a frame, a title and a rule stand first
        text = line.strip(" │┃|")
        if re.fullmatch(r"[─━-]{4,}", text) and lines:
            break
        if text and not re.search(r"[╭╮╰╯┏┓]", text):
            lines.append(text)
    return re.sub(r"^Error parsing \w+: ", "", " ".join(lines))


def run_command(
    prog: str,
    kind: type[T],
    main: Callable[[T], Any],
    examples: str,
    argv: Sequence[str] | None = None,
    default: Callable[[Sequence[str]], T] | None = None,
    groups: Groups | None = None,
) -> int:
    """Parses, runs, and turns a user's mistake into one line on stderr and exit code 2.

    `default` makes the defaults from the raw arguments; `groups` are what --help shows where not all is shown.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        if "--version" in argv:
            print(f"jax_mlm {package_version('jax-mlm')}, jax {package_version('jax')}")
            return 0
        base = default(argv) if default else None
        if asked := HELP & set(argv):
            print(render(prog, kind, examples, base, groups, everything="--help-all" in asked))
            return 0
        main(parse(prog, kind, argv, base))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"stopped{': ' + str(stop) if str(stop) else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    return 0
