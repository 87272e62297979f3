"""Questions and contexts to framed windows of tokens, and answers to the tokens that they begin and end at.

The question comes first, whole in every window, the context second, as the tokenizer frames a pair. A window is one
item; its targets are positions in it. Where it does not hold the answer, both are that of its first special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from jax_mlm.data.align import Count, Laying, Windows, check_room, encoded, frame_of, spread
from jax_mlm.data.labels import Example
from jax_mlm.errors import UserError


class Asked(NamedTuple):
    """Questions as windows; the tokens are those of all windows, one after the other."""

    windows: Windows
    remarks: tuple[str, ...]
    """What was cut, widened or cannot be learned, counted."""
    owners: np.ndarray
    """[windows] the number of the example."""
    offsets: np.ndarray
    """[tokens, 2] begin and end in the context, without white space around it."""
    inside: np.ndarray
    """[tokens] whether an answer may begin or end here: something of the context stands here."""
    targets: np.ndarray
    """[windows, 2] where in the window the first answer begins and ends."""
    known: np.ndarray
    """[windows] 0 where no answer is known."""
    sizes: np.ndarray
    """[examples] tokens of the first answer."""


class _Context(NamedTuple):
    ids: list[int]
    offsets: np.ndarray
    """[tokens, 2]"""


class _Answer(NamedTuple):
    """The tokens of an answer."""

    first: int
    last: int
    """Positions in the context; −1 where it has no token."""
    exact: bool
    """Whether they hold the answer and nothing else."""


def lay_questions(tokenizer: Tokenizer, examples: Sequence[Example], length: int, overlap: int) -> Asked:
    """Return the windows of questions with their contexts.

    Raises:
        UserError: a window has no room, or the tokenizer puts no token before a text, which would stand for no answer.
    """
    frame = frame_of(tokenizer, True)
    if not frame.before:
        raise UserError(
            "--init: its tokenizer puts no special token before a text, as one of whole words, and questions without "
            "an answer need one: start from a model with another tokenizer"
        )
    room = check_room(length, frame.size, overlap)
    laying, long, cut, wide, lost = Laying(frame), Count(), Count(), Count(), Count()
    contexts = _contexts(tokenizer, {each.text for each in examples})
    questions = encoded(tokenizer, [(each.pair or "").strip() for each in examples])
    owners: list[int] = []
    targets: list[tuple[int, int]] = []
    known: list[float] = []
    offsets: list[np.ndarray] = []
    sizes = np.zeros(len(examples), np.int64)
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
        context, asked = contexts[example.text], question.ids
        if len(asked) + len(context.ids) > room and len(asked) > room // 2:
            cut.add(example.where)
            asked = asked[: max(room // 2, room - len(context.ids))]
        left = room - len(asked)
        parts = spread(len(context.ids), left, min(overlap, (left - 1) // 2))
        if len(parts) > 1:
            long.add(example.where)
        answer = _answer(example, context)
        sizes[number] = answer.last - answer.first + 1 if answer.first >= 0 else 0
        if example.answers and answer.first < 0:
            lost.add(f"{example.where}: {_shown(example)}")
        elif not answer.exact:
            wide.add(f"{example.where}: {_shown(example)}")
        before, after = len(frame.before) + len(asked) + len(frame.between), len(frame.after)
        for a, b in parts:
            laying.add(asked, context.ids[a:b], [0], [len(owners)], [1.0])
            holds = a <= answer.first and answer.last < b
            targets.append((before + answer.first - a, before + answer.last - a) if holds else (0, 0))
            known.append(float(example.answers is not None and not (example.answers and answer.first < 0)))
            offsets += [np.zeros((before, 2), np.int32), context.offsets[a:b], np.zeros((after, 2), np.int32)]
            owners.append(number)
    remarks = (
        long.said(f"contexts with their questions are longer than {room} tokens and are read in windows"),
        cut.said("questions take more than half of a window and were cut (raise --length)"),
        wide.said("answers begin or end within a token, and take all of it"),
        lost.said("answers have no token of their own in this tokenizer, and are not learned"),
        Count([e.where for e in examples if not (e.text.strip() and (e.pair or "").strip())]).said(
            "questions or contexts are empty"
        ),
    )
    every = np.concatenate(offsets) if offsets else np.zeros((0, 2), np.int32)
    return Asked(
        laying.windows(),
        tuple(filter(None, remarks)),
        np.array(owners, np.int64),
        every,
        every[:, 0] < every[:, 1],
        np.array(targets, np.int32).reshape(-1, 2),
        np.array(known, np.float32),
        sizes,
    )


def _contexts(tokenizer: Tokenizer, texts: set[str]) -> dict[str, _Context]:
    """Return the tokens of each context: several questions are asked about one."""
    every = sorted(texts)
    return {
        text: _Context(encoding.ids, _trimmed(text, encoding))
        for text, encoding in zip(every, encoded(tokenizer, every), strict=True)
    }


def _trimmed(text: str, encoding: Encoding) -> np.ndarray:
    """Return where each token begins and ends in the text, without white space around it."""
    filled = np.flatnonzero([not letter.isspace() for letter in text])
    begins, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    first, end = np.searchsorted(filled, begins), np.searchsorted(filled, ends)
    empty = first >= end
    places = np.append(filled, 0)
    return np.stack(
        [np.where(empty, begins, places[first]), np.where(empty, begins, places[end - 1] + 1)], axis=-1
    ).astype(np.int32)


def _answer(example: Example, context: _Context) -> _Answer:
    """Return the tokens that the first answer touches."""
    if not example.answers:
        return _Answer(-1, -1, True)
    start, end = example.answers[0]
    text = example.text[start:end]
    start, end = start + len(text) - len(text.lstrip()), end - (len(text) - len(text.rstrip()))
    begins, ends = context.offsets.T
    touched = np.flatnonzero((begins < end) & (start < ends) & (begins < ends))
    if not len(touched):
        return _Answer(-1, -1, False)
    first, last = int(touched[0]), int(touched[-1])
    return _Answer(first, last, (int(begins[first]), int(ends[last])) == (start, end))


def _shown(example: Example) -> str:
    start, end = (example.answers or ((0, 0),))[0]
    return repr(example.text[start:end][:60])
