"""Options derived from a config class: a field's name, type, default and docstring are all that is declared."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from jax_mlm.cli.parser import Given, Parser
from jax_mlm.errors import UserError

T = TypeVar("T")
Groups = Mapping[str, Sequence[str]]  # title → names of the fields under it, if one list would be too long
Settings = dict[str, Any]  # what `add_argument` takes, which depends on the action
FILES, PATHS = ("data", "pairs", "valid", "tokenizer"), ("out", "init", "distil", "cache")
METAVARS = {
    **dict.fromkeys(FILES, "FILE"),
    **dict.fromkeys(PATHS, "PATH"),
    "budget": "TIME",
    "preset": "NAME",
    "family": "NAME",
}


def declare(parser: Parser, kind: type, base: object, groups: Groups, everything: bool) -> None:
    """Add the options of a config class, in groups if there are any; those in no group only if `everything`."""
    known = {name: (part, flag, settings) for name, part, flag, settings in options_of(kind, base)}
    titles = {name: title for title, names in groups.items() for name in names}
    sections: dict[str, argparse._ArgumentGroup] = {}
    for name in [*titles, *(other for other in known if everything and other not in titles)]:
        part, flag, settings = known[name]
        title = titles.get(name) or (f"more ({part})" if groups else "options" if "dest" in settings else "arguments")
        sections[title] = sections.get(title) or parser.add_argument_group(title)
        sections[title].add_argument(flag, **settings)


def options_of(kind: type, base: object = None, part: str = "the run") -> Iterator[tuple[str, str, str, Settings]]:
    """Yield the fields, nested ones too, with their part and what argparse takes; `base` has the defaults to show."""
    hints, docs = typing.get_type_hints(kind), field_docs(kind)
    for field in dataclasses.fields(kind):
        name, hint = field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from options_of(typing.cast(type, hint), getattr(base, name, None), name)
            continue
        text, default = docs[name], getattr(base, name, None if field.default is dataclasses.MISSING else field.default)
        if default is not None and default is not False and default not in ("", ()):
            text = f"{text} ({'yes' if default is True else default})"
        settings = {"help": text.replace("%", "%%"), **_value(name, hint, field.metadata)}
        if "positional" in field.metadata:
            yield name, part, name, {**settings, "metavar": field.metadata["positional"]}
        else:
            yield name, part, f"--{name.replace('_', '-')}", {**settings, "dest": name, "default": argparse.SUPPRESS}


@cache
def field_docs(kind: type) -> Mapping[str, str]:
    """Return the string that follows each field of a class."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
    docs = {}
    for field, after in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[typing.cast(ast.Name, field.target).id] = " ".join(str(after.value.value).split())
    return docs


@cache
def keys_of(table: str) -> tuple[str, ...]:
    """Return the keys of a module's table, read from its source: importing the module would import JAX as well."""
    *path, name = table.split(".")
    source = Path(__file__).parents[2].joinpath(*path).with_suffix(".py").read_text(encoding="utf-8")
    tables = {
        ast.unparse(node.target): node.value for node in ast.parse(source).body if isinstance(node, ast.AnnAssign)
    }
    return tuple(ast.literal_eval(key) for key in typing.cast(ast.Dict, tables[name]).keys if key is not None)


def _value(name: str, hint: Any, metadata: Mapping[str, Any]) -> Settings:  # Any: a type annotation
    """Return what argparse has to know about the values of a field of this type."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return {**_value(name, arguments[0], metadata), "nargs": "+"}
    if choices := keys_of(metadata["choices"]) if "choices" in metadata else arguments:
        bare = {"nargs": "?", "const": metadata["bare"]} if "bare" in metadata else {}
        return {**bare, "choices": choices, "metavar": METAVARS.get(name, f"{{{','.join(filter(None, choices))}}}")}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": hint, "metavar": {int: "N", float: "X", Path: "PATH"}.get(hint) or METAVARS.get(name, "TEXT")}


def build(kind: type[T], given: Given, base: T | None = None) -> T:
    """Return the config: the given options over those of `base` or the defaults. UserError if a value is refused."""
    hints = typing.get_type_hints(kind)
    values = {} if base is None else {name: getattr(base, name) for name in hints}
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            values[name] = build(typing.cast(type, hint), given, values.get(name))
        elif name in given:
            values[name] = given[name]
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(str(error)) from None
