"""The edge: command lines in, one clear line for a mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import tyro

from jax_mlm.errors import UserError

T = TypeVar("T")


def nearest(word: str, choices: Sequence[str]) -> str:
    """' Did you mean X?' where one is close, else nothing."""
    close = difflib.get_close_matches(word, choices, 1)
    return f" Did you mean {close[0]}?" if close else ""


def parse(prog: str, kind: type[T], argv: Sequence[str], examples: str, default: T | None = None) -> T:
    """Options → a config of class `kind`; --help exits with 0, a bad option is a UserError of one line."""
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    description = f"{(kind.__doc__ or '').strip()}\n\n{examples}"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, args=list(argv), prog=prog, description=description, config=(tyro.conf.OmitArgPrefixes,), **kwargs
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        line = _in_one_line(said.getvalue())
        unknown = re.search(r"Unrecognized options: (--[\w-]+)", line)
        raise UserError(line + (nearest(unknown[1], _options(kind)) if unknown else "")) from None


def _options(kind: type) -> list[str]:
    """The options that the fields of a config make, nested ones too."""
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        names += _options(hint) if dataclasses.is_dataclass(hint) else [f"--{name.replace('_', '-')}"]
    return names


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
) -> int:
    """Parses, runs, and turns a user's mistake into one line on stderr and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        config = parse(prog, kind, argv, examples, default(argv) if default else None)
        main(config)
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


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a flag: the step in flight ends and is saved; a second Ctrl-C ends at once."""
    asked = []

    def ask(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
