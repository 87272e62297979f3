"""Which words an answer hangs on, by occlusion: hide each in turn and ask again. A fact, not a story."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlm_onnx.answer.joint import Ask
from mlm_onnx.answer.reader import Text

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Word:
    """A word of the text, as its tokenizer splits texts into words."""

    places: np.ndarray
    """Its tokens."""
    start: int
    end: int


@dataclass(frozen=True)
class Hidden:
    """What the model says at a mask while a word is hidden."""

    word: Word
    logprob: float
    """Of the answer that is explained."""
    best: int
    """The likeliest id instead."""


def words_of(text: Text) -> list[Word]:
    """The words of a text, masks and frame left out."""
    pieces: dict[int, list[int]] = {}
    masks = set(text.at.tolist())
    for place, word in enumerate(text.words):
        if word is not None and place not in masks:
            pieces.setdefault(word, []).append(place)
    found = []
    for places in pieces.values():
        start, end = text.offsets[places[0]][0], text.offsets[places[-1]][1]
        inside = text.text[start:end]
        start, end = start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())
        if start < end:
            found.append(Word(np.array(places), start, end))
    return found


def occlude(
    text: Text,
    masks: np.ndarray,
    words: Sequence[Word],
    answers: Sequence[int],
    mask_id: int,
    never: np.ndarray,
    ask: Ask,
) -> list[list[Hidden]]:
    """For each of some masks, each word hidden in turn: all its tokens become masks, so that no length changes."""
    found: list[list[Hidden | None]] = [[None] * len(words) for _ in masks]
    for start in range(0, len(words), ROWS_AT_ONCE):
        asked = []
        for word in words[start : start + ROWS_AT_ONCE]:
            ids = text.ids.copy()
            ids[word.places] = mask_id
            asked.append((text.with_ids(ids), text.at[masks]))
        for which, indices, logprobs in ask(asked):
            for index, row in zip(indices, logprobs, strict=True):
                allowed = row.copy()
                allowed[never] = -np.inf
                logprob = float(row[answers[index]])
                found[index][start + which] = Hidden(words[start + which], logprob, int(allowed.argmax()))
    return [[each for each in row if each is not None] for row in found]
