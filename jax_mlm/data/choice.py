"""Which kind of tokenizer fits a text, by a sample of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from jax_mlm.data.encoding import UNSPACED
from jax_mlm.data.tokenizer import Kind, evenly

LOOKED_AT = 1 << 20
"""Number of characters in the sample."""
UNSPACED_SHARE = 0.3
"""A text counts as unspaced if more than this share of its letters belong to scripts without spaces."""
HAN = (0x3400, 0x9FFF)
LONG, LONG_SHARE = 30, 0.5
"""Letters without words: runs of more than LONG characters without a space make up over this share of a text."""
ALONE, ALONE_SHARE, SYMBOL_SHARE, CAPITALS, BASES = 12, 0.8, 0.1, 0.9, 6
"""Letters without words, too: most documents are a single word, and the words are long on average, hold many symbols
and digits (SMILES), are written in capitals (peptides) or use very few different letters (DNA)."""
CODE, CODE_SHARE = frozenset("{}[]()=<>;_"), 0.05
"""Source code: at least this share of the characters, spaces aside, are in the set."""
Nature = Literal["prose", "unspaced", "letters", "code"]
FITS: dict[Nature, Kind] = {"prose": "wordpiece", "unspaced": "unigram", "letters": "bpe", "code": "bpe"}


class Choice(NamedTuple):
    """A kind of tokenizer, and what in the text speaks for it."""

    kind: Kind
    nature: Nature
    reason: str


def choose_kind(texts: Iterable[str]) -> Choice:
    """Return the kind that fits these texts: prose, a script without spaces, letters without words, or source code."""
    nature, reason = _nature(evenly(texts, LOOKED_AT))
    return Choice(FITS[nature], nature, reason)


def misfit(kind: Kind, choice: Choice) -> str | None:
    """Return what is lost by another kind than the one that fits; None where little is."""
    nature, reason = choice.nature, choice.reason
    if kind == "word" and nature in ("unspaced", "letters"):
        return f"{reason}: what lies between two spaces is one word to it, and what it has not seen is unknown"
    if kind == "wordpiece" and nature == "letters":
        return f"{reason}: it looks for words, and is slow where there are none"
    if kind == "wordpiece" and nature == "unspaced" and not reason.endswith("(mostly Han)"):
        return f"{reason}: it looks for words between spaces"
    if kind in ("word", "wordpiece", "unigram") and nature == "code":
        return f"{reason}: indentation and line ends are lost"
    return None


def _nature(sample: list[str]) -> tuple[Nature, str]:
    counts: Counter[str] = Counter()
    long = words = alone = 0
    for text in sample:
        counts.update(text)
        between = text.split()
        words += len(between)
        alone += len(between) == 1
        long += sum(len(word) for word in between if len(word) > LONG)
    inked = {character: n for character, n in counts.items() if not character.isspace()}
    total = max(sum(inked.values()), 1)
    letters = {character: n for character, n in inked.items() if character.isalpha()}
    unspaced = sum(n for letter, n in letters.items() if any(low <= ord(letter) <= high for low, high in UNSPACED))
    if unspaced > UNSPACED_SHARE * max(sum(letters.values()), 1):
        han = sum(n for letter, n in letters.items() if HAN[0] <= ord(letter) <= HAN[1])
        mostly = " (mostly Han)" if han > 0.9 * unspaced else ""
        share = unspaced / sum(letters.values())
        return "unspaced", f"{share:.0%} of the letters are of scripts without spaces{mostly}"
    if long > LONG_SHARE * total:
        return "letters", f"{long / total:.0%} of the text has more than {LONG} characters between spaces"
    symbols = sum(n for character, n in inked.items() if not character.isalpha())
    capitals = sum(n for letter, n in letters.items() if letter.isupper())
    odd = symbols > SYMBOL_SHARE * total or capitals > CAPITALS * total or len(letters) <= BASES
    if alone > ALONE_SHARE * len(sample) and (total > ALONE * words or odd):
        return "letters", f"{alone / len(sample):.0%} of the documents have no space in them"
    code = sum(inked.get(character, 0) for character in CODE)
    if code > CODE_SHARE * total:
        return "code", f"{code / total:.0%} of the characters are brackets and signs of source code"
    return "prose", "words between spaces"
