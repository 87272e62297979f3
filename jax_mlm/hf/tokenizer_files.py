"""The options in a Hugging Face directory's tokenizer files, checked: switches, special tokens, added tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken

from jax_mlm.config import Json
from jax_mlm.errors import UserError, shown

ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")
REMEDY = "give a tokenizer.json with --tokenizer FILE to python -m jax_mlm.hf import"
CONFIG, SPECIAL_TOKENS, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
MARKS = ("lstrip", "rstrip", "single_word", "normalized", "special")
"""What these files say of a token beside its text."""


@dataclass
class Source:
    """A directory's tokenizer files, the options in them, and what the user should know of."""

    folder: Path
    options: Json
    remarks: list[str] = field(default_factory=list)

    def wrong(self, name: str, wanted: str) -> UserError:
        value = shown(self.options[name])
        return UserError(f"{self.folder}, {CONFIG} or {SPECIAL_TOKENS}: {name} is {value}, where {wanted} was expected")

    def flag(self, name: str, default: bool | None) -> bool | None:
        """Return a switch; null stands for the default."""
        value = self.options.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return default if value is None else value

    def token(self, role: str) -> AddedToken | None:
        """Return the special token that the files name for a role, with their marks; None where they name none."""
        name = f"{role}_token"
        return None if self.options.get(name) is None else self._token(name, self.options[name])

    def names_marks(self, role: str) -> bool:
        """Return whether the files give the token of a role with its marks."""
        return isinstance(self.options.get(f"{role}_token"), dict)

    def further(self) -> list[AddedToken]:
        """Return the special tokens without a role."""
        found: list[AddedToken] = []
        for name in ("additional_special_tokens", "extra_special_tokens"):
            value = self.options.get(name)
            values = list(value.values()) if isinstance(value, dict) else value
            if value is not None and not isinstance(values, list):
                raise self.wrong(name, "a list of tokens")
            found += [self._token(name, each) for each in values or ()]
        return found

    def added(self) -> list[tuple[int, AddedToken]]:
        """Return the tokens beside a vocabulary with their ids, in the order of these."""
        special = {token.content for role in ROLES if (token := self.token(role))}
        found: dict[int, AddedToken] = {}
        if (self.folder / ADDED).is_file():
            for text, id in read_json(self.folder / ADDED).items():
                if type(id) is not int or id < 0:
                    raise UserError(f"{self.folder / ADDED}: the id of {shown(text)} is {shown(id)}, not an integer")
                found[id] = AddedToken(text, normalized=text not in special, special=text in special)
        entries = self.options.get("added_tokens_decoder")
        if entries is not None and not isinstance(entries, dict):
            raise self.wrong("added_tokens_decoder", "an object")
        for id, marks in (entries or {}).items():
            if not (id.isascii() and id.isdecimal() and len(id) < 20 and isinstance(marks, dict)):
                raise self.wrong("added_tokens_decoder", "tokens with their marks by id")
            found[int(id)] = self._token("added_tokens_decoder", {"special": False, **marks})
        return sorted(found.items(), key=lambda entry: entry[0])

    def _token(self, name: str, value: object) -> AddedToken:
        given: Json = value if isinstance(value, dict) else {"content": value}
        text = given.get("content")
        if not isinstance(text, str) or not text:
            raise self.wrong(name, "a token")
        marks = {mark: given.get(mark, mark == "special") for mark in MARKS}
        if not all(isinstance(mark, bool) for mark in marks.values()):
            raise self.wrong(name, "a token with marks that are true or false")
        return AddedToken(text, **marks)


def read_json(path: Path) -> Json:
    """Return the object in a JSON file; raise a UserError where it holds anything else."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def read_text(path: Path) -> str:
    """Return a text file without the mark that Windows puts first; a UserError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: fetch it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file."""
    lines = read_text(path).split("\n")
    return [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
