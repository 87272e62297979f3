"""The words of a tokenised text, found by offsets alone, as training finds the whole words that it hides."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

UNSPACED = (
    *((0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF)),  # Thai, Lao, Tibetan; Burmese; Khmer
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),  # radicals; kana
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # Han
)
"""Scripts written without spaces, as `jax_mlm.data.encoding` lists them: each token there is a word of its own."""

JOINERS = "_\u200c\u200d"
"""What stands inside words without being a letter: the underscore, and the zero-width joiners of Persian and Indic."""


def is_word(character: str) -> bool:
    """Return whether a character is part of a word in a script that separates words by spaces."""
    if not character or any(low <= ord(character) <= high for low, high in UNSPACED):
        return False
    return character.isalnum() or character in JOINERS or unicodedata.category(character)[0] == "M"


LONGEST = 40
"""Characters of a word: a longer run of letters is a protein or the like, and each of its tokens counts by itself."""


def words_among(text: str, offsets: Sequence[tuple[int, int]], positions: Iterable[int]) -> list[list[int]]:
    """Return the positions of tokens grouped by words.

    A token goes on with the word of the one before it if they share a character, or if they touch and the characters
    that touch are letters, digits, marks or underscores. A lone space belongs to the word that follows it.
    """
    words: list[list[int]] = []
    for position in positions:
        if offsets[position][0] == offsets[position][1]:
            continue
        if words and _goes_on(text, offsets[words[-1][-1]], offsets[position]):
            words[-1].append(position)
        else:
            words.append([position])
    return [part for word in words for part in _parts(word, offsets)]


def left_out(text: str, offsets: Iterable[tuple[int, int]]) -> int:
    """Return how many words, or parts of one, no token covers: some tokenizers leave out what they do not know."""
    count = covered = 0
    for start, end in (*offsets, (len(text), len(text))):
        if start > covered and not text[covered:start].isspace():
            count += sum(any(map(str.isalnum, word)) for word in text[covered:start].split())
        if end > covered:
            covered = end
    return count


def _parts(word: list[int], offsets: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return a word, or the tokens of one that is too long to be one; tokens that share a character stay together."""
    if offsets[word[-1]][1] - offsets[word[0]][0] <= LONGEST:
        return [word]
    parts = [word[:1]]
    for before, position in pairwise(word):
        if offsets[position][0] < offsets[before][1]:
            parts[-1].append(position)
        else:
            parts.append([position])
    return parts


def _goes_on(text: str, before: tuple[int, int], token: tuple[int, int]) -> bool:
    if token[0] < before[1]:
        return True
    touches = token[0] == before[1] and is_word(text[token[0]])
    return touches and (text[before[0] : before[1]] == " " or is_word(text[before[1] - 1]))
