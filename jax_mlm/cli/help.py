"""What --help prints, and what is wrong with a command line: both from a config's fields and their docstrings."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from jax_mlm.errors import UserError

Groups = Mapping[str, Sequence[str]]
"""Title → names of the fields shown under it, for commands whose options are too many for one list."""
COLUMN, NARROWEST, WIDEST = 25, 50, 100
WHOLE, REAL = "N", "X"
METAVARS = {int: WHOLE, float: REAL, str: "TEXT", Path: "PATH"}
SPOKEN = {
    **dict.fromkeys(("data", "valid", "tokenizer"), "FILE"),
    **dict.fromkeys(("out", "init", "cache"), "PATH"),
    **{"budget": "TIME", "preset": "NAME"},
}
"""What a text stands for, by field, where TEXT would say too little."""
NUMBER = re.compile(r"-[\d.]")


class Option(NamedTuple):
    """One option or positional argument of a command."""

    name: str
    """--eval-every, or RUN for a positional one."""
    field: str
    value: str
    """What stands behind it: N, TEXT, {a,b}; empty for a switch."""
    choices: tuple[str, ...]
    text: str
    default: Any
    part: str
    """The nested config that it belongs to; empty for the command's own."""
    positional: bool


def nearest(word: str, choices: Sequence[str]) -> str:
    """' Did you mean X?' where one is close, else nothing."""
    close = difflib.get_close_matches(word, choices, 1)
    return f" Did you mean {close[0]}?" if close else ""


def options_of(kind: type, default: Any = None, part: str = "") -> list[Option]:
    """The options that the fields of a config make, nested ones too; `default` is an instance, else the fields' own."""
    hints, docs, out = typing.get_type_hints(kind, include_extras=True), field_docs(kind), []
    for field in dataclasses.fields(kind):
        marks = typing.get_args(hints[field.name])[1:] if hasattr(hints[field.name], "__metadata__") else ()
        hint = typing.get_args(hints[field.name])[0] if marks else hints[field.name]
        value = getattr(default, field.name) if default is not None else _default(field)
        if dataclasses.is_dataclass(hint):
            out += options_of(typing.cast(type, hint), value, field.name)
            continue
        positional = any(mark is tyro.conf.Positional for mark in marks)
        named = next((m.metavar for m in marks if getattr(m, "metavar", None)), None)
        shown, choices = _value(hint)
        shown = shown.replace("TEXT", SPOKEN.get(field.name, "TEXT"))
        name = (named or field.name.upper()) if positional else f"--{field.name.replace('_', '-')}"
        text = docs.get(field.name, "")
        out.append(Option(name, field.name, named or shown, choices, text, value, part, positional))
    return out


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _value(hint: Any) -> tuple[str, tuple[str, ...]]:
    """What stands behind an option of this type, and the choices where there are some."""
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        return "{" + ",".join(c for c in choices if c) + "}", choices
    if hint is bool:
        return "", ()
    if typing.get_origin(hint) is tuple:
        return _value(typing.get_args(hint)[0])[0] + " …", ()
    if isinstance(hint, types.UnionType):
        return _value(typing.get_args(hint)[0])
    return METAVARS[hint], ()


def field_docs(kind: type) -> dict[str, str]:
    """The string behind each field of a class."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
    docs = {}
    for field, behind in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
            docs[typing.cast(ast.Name, field.target).id] = " ".join(str(behind.value.value).split())
    return docs


# ---- the page ------------------------------------------------------------------------------------


def render(
    prog: str, kind: type, examples: str, default: Any = None, groups: Groups | None = None, everything: bool = False
) -> str:
    """The help of a command at the terminal's width.

    With `groups` the page holds their options only, and --help-all (`everything`) all others too.
    """
    width = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
    options = options_of(kind, default)
    behind = " ".join(o.name for o in options if o.positional)
    lines = [f"usage: {prog} {behind + ' ' if behind else ''}[OPTIONS]", ""]
    lines += [*textwrap.wrap((inspect.getdoc(kind) or "").split("\n\n")[0], width), "", examples]
    for title, chosen in _grouped(options, groups, everything).items():
        if chosen:
            lines += ["", f"{title}:", *(line for option in chosen for line in _entry(option, width))]
    lines += ["", "help:"]
    rest = [("--help, -h", "This page."), ("--version", "The versions of jax_mlm and of JAX.")]
    if groups:
        this, other = ("This page.", "The options one needs most.") if everything else (rest[0][1], "Every option.")
        rest = [("--help, -h", other if everything else this), ("--help-all", this if everything else other), rest[1]]
    lines += [line for name, text in rest for line in _columns(name, text, width)]
    return "\n".join(lines)


def _grouped(options: Sequence[Option], groups: Groups | None, everything: bool) -> dict[str, list[Option]]:
    if groups is None:
        return {
            "arguments": [o for o in options if o.positional],
            "options": [o for o in options if not o.positional],
        }
    by_field = {o.field: o for o in options}
    out = {title: [by_field[field] for field in fields] for title, fields in groups.items()}
    if everything:
        shown = {field for fields in groups.values() for field in fields}
        for option in options:
            if option.field not in shown:
                out.setdefault(f"more of {option.part or 'the run'}", []).append(option)
    return out


def _entry(option: Option, width: int) -> list[str]:
    name = option.name if option.positional else f"{option.name} {option.value}".strip()
    if option.default is True:
        name = f"{name}, --no-{option.name[2:]}"
    return _columns(name, f"{option.text} {_shown(option.default)}".strip(), width)


def _shown(default: Any) -> str:
    """The default in brackets, where there is one to speak of."""
    if default is None or default is False or default == "" or default == ():
        return ""
    return f"({'yes' if default is True else ', '.join(default) if isinstance(default, tuple) else default})"


def _columns(name: str, text: str, width: int) -> list[str]:
    wrapped = textwrap.wrap(text, width - COLUMN - 2, break_on_hyphens=False) or [""]
    first = f"  {name}"
    if len(first) > COLUMN:
        return [first, *(" " * (COLUMN + 2) + line for line in wrapped)]
    return [f"{first:<{COLUMN + 2}}{wrapped[0]}", *(" " * (COLUMN + 2) + line for line in wrapped[1:])]


# ---- mistakes ------------------------------------------------------------------------------------


def check(prog: str, options: Sequence[Option], argv: Sequence[str]) -> None:
    """Refuses an unknown option, a value that is none of the choices, and an option without its value.

    Raises:
        UserError: one line that names the option and what to write instead.
    """
    named = {option.name: option for option in options if not option.positional}
    switches = {f"--no-{name[2:]}" for name, option in named.items() if not option.value}
    for word, following in itertools.zip_longest(argv, argv[1:]):
        if not word.startswith("--") or word == "--":
            continue
        written, equals, value = word.partition("=")
        name = written.replace("_", "-")
        if name in switches:
            continue
        if name not in named:
            close = nearest(name, [*named, *switches]) or f" {prog} --help lists them"
            raise UserError(f"{written} is no option.{close}")
        option = named[name]
        given = value if equals else following
        if option.value and (given is None or (not equals and given.startswith("-") and not NUMBER.match(given))):
            raise UserError(f"{written} needs a value: {name} {option.value}")
        wanted = {WHOLE: (int, "a whole number"), REAL: (float, "a number")}.get(option.value)
        if wanted is not None:
            try:
                wanted[0](str(given))
            except ValueError:
                raise UserError(f"{name} {given}: expected {wanted[1]}") from None
        if option.choices and given not in option.choices:
            choices = [choice for choice in option.choices if choice]
            raise UserError(f"{name} {given} is unknown: choose {', '.join(choices)}.{nearest(str(given), choices)}")
