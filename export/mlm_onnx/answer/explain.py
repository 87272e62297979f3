"""Measure which words an answer depends on, by occlusion: hide each in turn and ask again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlm_onnx.answer.joint import Ask
from mlm_onnx.answer.reader import Reader, Text
from mlm_onnx.answer.words import words_among

ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Word:
    """A word of the text."""

    positions: np.ndarray
    """Token positions."""
    start: int
    end: int


@dataclass(frozen=True)
class Hidden:
    """The model's answer at a mask while one more word is hidden."""

    word: Word
    logprob: float
    """ln p of the answer being explained."""
    best: int
    """The likeliest id while the word is hidden."""


def words_of(text: Text) -> list[Word]:
    """Return the words of a text, except masks and framing tokens; where no spaces are written, each token is one."""
    before, after = text.frame
    masks = set(text.at.tolist())
    inner = (position for position in range(before, len(text.ids) - after) if position not in masks)
    words = []
    for positions in words_among(text.text, text.offsets, inner):
        start, end = text.offsets[positions[0]][0], text.offsets[positions[-1]][1]
        inside = text.text[start:end]
        start, end = start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())
        if start < end:
            words.append(Word(np.array(positions), start, end))
    return words


def asked_together(text: Text, reader: Reader) -> Iterator[tuple[np.ndarray, list[Word]]]:
    """Yield groups of masks that share one window, each with the words inside that window."""
    every, words = np.arange(len(text.at)), words_of(text)
    if not reader.is_long(text):
        yield every, words
        return
    for mask in every:
        first, last = reader.window(text, int(text.at[mask]))
        yield (
            every[mask : mask + 1],
            [word for word in words if word.positions[-1] >= first and word.positions[0] < last],
        )


def occlude(
    text: Text,
    masks: np.ndarray,
    words: Sequence[Word],
    answers: Sequence[int],
    mask_id: int,
    excluded: np.ndarray,
    ask: Ask,
) -> list[list[Hidden]]:
    """For each mask, hide each word in turn by masking all of its tokens, so that the length stays the same."""

    def measure(_word: int, mask: int, logprobs: np.ndarray) -> tuple[float, int]:
        allowed = logprobs.copy()
        allowed[excluded] = -np.inf
        return float(logprobs[answers[mask]]), int(allowed.argmax())

    effects: list[list[Hidden]] = [[] for _ in masks]
    for start in range(0, len(words), ROWS_AT_ONCE):
        some = words[start : start + ROWS_AT_ONCE]
        asked = [(_without(text, word, mask_id), text.at[masks]) for word in some]
        for word, answered in zip(some, ask(asked, measure), strict=True):
            for hidden, (logprob, best) in zip(effects, answered, strict=True):
                hidden.append(Hidden(word, logprob, best))
    return effects


def _without(text: Text, word: Word, mask_id: int) -> Text:
    ids = text.ids.copy()
    ids[word.positions] = mask_id
    return text.with_ids(ids)
