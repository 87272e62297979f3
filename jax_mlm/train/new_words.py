"""The words of --add-tokens: which are new, how a tokenizer finds them in a text, and which never occur there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer

from jax_mlm.data.encoding import UNSPACED
from jax_mlm.data.tokenizer import mask_of, vocabulary_of
from jax_mlm.errors import UserError

FILES = (
    ".txt",
    ".text",
    ".csv",
    ".tsv",
    ".lst",
    ".list",
    ".vocab",
    ".json",
    ".jsonl",
    ".md",
    ".tokens",
    ".words",
    ".gz",
)
"""What the name of a file of words ends with: no word does."""
WITH_PARTICLES = ((0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF))
"""Hangul: particles follow a word without a space."""
NAMED = 20
"""Most words that a message names."""
AT_ONCE = 1 << 24
"""Tokens looked through at once."""


def words_of(given: Iterable[str]) -> list[str]:
    """Return the words of --add-tokens: each entry is a word, or a file with one a line.

    Raises:
        UserError: an entry names a file that is not there, or is not text; there is no word in all of them.
    """
    given, words = list(given), list[str]()
    for entry in given:
        if not Path(entry).is_file():
            if entry.lower().endswith(FILES) or "/" in entry or os.sep in entry:
                raise UserError(f"--add-tokens {entry}: no such file (words like this go into a file, one a line)")
            words.append(entry)
            continue
        try:
            words += Path(entry).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"--add-tokens {entry} is not UTF-8 text: give a file with a word a line") from None
    found = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    if not found:
        raise UserError(f"--add-tokens {' '.join(given)}: there is no word in it (give words, or a file, one a line)")
    return found


def with_words(tokenizer: Tokenizer, words: Iterable[str], say: Callable[[str], None] = lambda text: None) -> Tokenizer:
    """Return a copy of the tokenizer with each word that is not a token yet appended to its vocabulary.

    A new word takes the space before it into its token if the mask does, so that the tokens around it are those around
    a mask. It is found as a whole word, or also inside longer runs of letters in scripts that do not set words apart.

    Raises:
        UserError: every word is a token already.
    """
    fresh, there = new_among(tokenizer, words)
    if not fresh:
        raise UserError("--add-tokens: every word in it is a token already")
    if there:
        say(f"--add-tokens: tokens already, and left as they were: {listed(there)}")
    space = tokenizer.get_added_tokens_decoder()[mask_of(tokenizer)].lstrip
    # where the normaliser turns spaces into marks, words are looked for in the text as it is
    normalized = tokenizer.normalizer is None or " " in tokenizer.normalizer.normalize_str("a b")
    grown = Tokenizer.from_str(tokenizer.to_str())
    grown.add_tokens(
        [AddedToken(word, single_word=stands_apart(word), lstrip=space, normalized=normalized) for word in fresh]
    )
    return grown


def new_among(tokenizer: Tokenizer, words: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return which words a tokenizer splits, each once as it normalises them, and which are single tokens of it."""
    known, unknown = tokenizer.get_vocab(with_added_tokens=True), vocabulary_of(tokenizer).unk
    normalize = str if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str
    fresh: dict[str, str] = {}
    there: list[str] = []
    for word in words:
        if word in known or _is_token(tokenizer, word, unknown):
            there.append(word)
        else:
            fresh.setdefault(normalize(word), word)
    return list(fresh.values()), there


def _is_token(tokenizer: Tokenizer, word: str, unknown: int | None) -> bool:
    """Return whether a word is one token at the start of a text, after a space or after a bracket."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    for before in ("", "x ", "("):
        alone, both = ids(before.strip()), ids(before + word)
        if both[:-1] == alone and both[-1] != unknown:
            return True
    return False


def stands_apart(word: str) -> bool:
    """Return whether a word is set apart from the letters around it: by its first and its last letter."""
    joined = (*UNSPACED, *WITH_PARTICLES)
    return not any(low <= ord(letter) <= high for letter in (word[0], word[-1]) for low, high in joined)


def never_among(tokens: np.ndarray, ids: Sequence[int]) -> list[int]:
    """Return which ids never occur among the tokens."""
    left = np.array(sorted(ids), np.int64)
    for start in range(0, len(tokens), AT_ONCE):
        if not len(left):
            break
        some = np.asarray(tokens[start : start + AT_ONCE])
        left = np.setdiff1d(left, np.unique(some[some >= left[0]]))
    return left.tolist()


def never_seen(given: Iterable[str], tokenizer: Tokenizer, tokens: np.ndarray) -> list[str]:
    """Return a line that names the words of --add-tokens that never occur in the training text, or nothing."""
    added = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items() if not token.special}
    words = {added[word]: word for word in words_of(given) if word in added}
    never = never_among(tokens, list(words))
    if not never:
        return []
    which = listed([words[id] for id in never])
    return [
        f"--add-tokens: {len(never)} of {len(words)} new words never occur in --data as words of their own, so nothing "
        f"is learned of them: {which}"
    ]


def listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more
