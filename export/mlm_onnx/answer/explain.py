"""Measure which words an answer depends on, by occlusion: hide each in turn and ask again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlm_onnx.answer.joint import Ask
from mlm_onnx.answer.reader import Reader, Text

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Word:
    """A word of the text, as its tokenizer splits texts into words."""

    places: np.ndarray
    """Positions of its tokens."""
    start: int
    end: int


@dataclass(frozen=True)
class Hidden:
    """What the model answers at a mask while a word is hidden."""

    word: Word
    logprob: float
    """ln p of the answer that is explained."""
    best: int
    """The likeliest id instead."""


def words_of(text: Text) -> list[Word]:
    """Return the words of a text, without masks and frame."""
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


def asked_together(text: Text, reader: Reader) -> Iterator[tuple[np.ndarray, list[Word]]]:
    """Yield masks that the model sees through one window, and the words that it sees there."""
    every, words = np.arange(len(text.at)), words_of(text)
    if not reader.is_long(text):
        yield every, words
        return
    for mask in every:
        first, last = reader.window(text, int(text.at[mask]))
        yield every[mask : mask + 1], [word for word in words if word.places[-1] >= first and word.places[0] < last]


def occlude(
    text: Text,
    masks: np.ndarray,
    words: Sequence[Word],
    answers: Sequence[int],
    mask_id: int,
    never: np.ndarray,
    ask: Ask,
) -> list[list[Hidden]]:
    """For each of some masks, hide each word in turn: all of its tokens become masks, so that no length changes."""

    def measure(_word: int, mask: int, logprobs: np.ndarray) -> tuple[float, int]:
        allowed = logprobs.copy()
        allowed[never] = -np.inf
        return float(logprobs[answers[mask]]), int(allowed.argmax())

    found: list[list[Hidden]] = [[] for _ in masks]
    for start in range(0, len(words), ROWS_AT_ONCE):
        some = words[start : start + ROWS_AT_ONCE]
        asked = [(_without(text, word, mask_id), text.at[masks]) for word in some]
        for word, measured in zip(some, ask(asked, measure), strict=True):
            for hidden, (logprob, best) in zip(found, measured, strict=True):
                hidden.append(Hidden(word, logprob, best))
    return found


def _without(text: Text, word: Word, mask_id: int) -> Text:
    ids = text.ids.copy()
    ids[word.places] = mask_id
    return text.with_ids(ids)
