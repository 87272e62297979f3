"""The shapes of answers, as plain dicts ready for JSON, and the class that builds them from the model's output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from mlm_onnx.answer.pieces import Pieces
from mlm_onnx.answer.queries import Choices, Ranked
from mlm_onnx.answer.reader import Reader, Text
from mlm_onnx.answer.words import left_out

if TYPE_CHECKING:
    from mlm_onnx.answer.explain import Hidden
    from mlm_onnx.answer.joint import Filling


class Window(TypedDict):
    """The range of characters that the model saw."""

    start: int
    end: int


class Located(TypedDict):
    """The position of a mask in its text."""

    position: int
    """Index of its whitespace-separated word, counted from 0."""
    start: int
    end: int
    """Character offsets."""
    window: NotRequired[Window]
    """Present only if the text is longer than the model's window."""


class Partly(TypedDict, total=False):
    """Marks a token that stands for longer targets."""

    first_piece_of: list[str]


class _Rank(TypedDict, total=False):
    rank: int
    """Among all tokens, 1 being the likeliest; present only if targets were given."""


class Candidate(_Rank, Partly):
    """A token that may fill a mask."""

    token: str
    id: int
    probability: float
    text: str
    """The text with this token filled in."""


class Mask(Located):
    """The likeliest tokens at one mask."""

    candidates: list[Candidate]


class JointFilling(TypedDict):
    """One way to fill all masks of a text together."""

    tokens: list[str]
    ids: list[int]
    order: list[int]
    """The masks, in the order in which they were filled."""
    logprob: float
    text: str


class Filled(TypedDict):
    """What `FillMask` returns for a text."""

    text: str
    masks: list[Mask]
    pseudo_joint: NotRequired[list[JointFilling]]


class ScoredToken(TypedDict):
    """A token that counts towards the score, and its ln p when it is hidden."""

    token: str
    logprob: float


class Score(TypedDict):
    """A text's pseudo-log-likelihood."""

    text: str
    score: float
    perplexity: float
    unknown: int
    """Number of unknown tokens among those that count, and of words that have no token at all."""
    tokens: list[ScoredToken]


class WithoutWord(TypedDict):
    """What changes at a mask when a word is hidden too."""

    word: str
    start: int
    end: int
    probability: float
    effect: float
    instead: str


class ExplainedMask(Located, Partly):
    """What the answer at one mask depends on."""

    token: str
    id: int
    probability: float
    words: list[WithoutWord]


class Explanation(TypedDict):
    """What the answers to a text depend on."""

    text: str
    masks: list[ExplainedMask]


class Answers:
    """Builds the answers of one bundle."""

    def __init__(self, reader: Reader, pieces: Pieces) -> None:
        self._reader, self._pieces = reader, pieces

    def mask(self, query: Text, mask: int, ranked: Sequence[Ranked], choices: Choices) -> Mask:
        """Return the answer for one mask of a text."""
        start, end = query.spans[mask]
        candidates: list[Candidate] = []
        for each in ranked:
            filled = self._pieces.fill(query.text, start, end, each.id)
            rank: _Rank = {} if each.rank is None else {"rank": each.rank}
            candidates.append(
                {
                    "token": self._pieces.shown(each.id),
                    "id": each.id,
                    "probability": math.exp(each.logprob),
                    **rank,
                    **_partly(each.id, choices),
                    "text": filled,
                }
            )
        return {**self._located(query, mask), "candidates": candidates}

    def joint(self, query: Text, filling: Filling) -> JointFilling:
        """Return a text with all of its masks filled."""
        ids = [id for _, id in sorted(filling.ids)]
        text = self._pieces.fill_all(query.text, query.spans, ids)
        tokens, order = [self._pieces.shown(id) for id in ids], [mask for mask, _ in filling.ids]
        return {"tokens": tokens, "ids": ids, "order": order, "logprob": filling.logprob, "text": text}

    def explained(
        self, query: Text, mask: int, answer: Ranked, hidden: Sequence[Hidden], choices: Choices
    ) -> ExplainedMask:
        """Return what the answer at one mask depends on."""
        words: list[WithoutWord] = [
            {
                "word": query.text[each.word.start : each.word.end],
                "start": each.word.start,
                "end": each.word.end,
                "probability": math.exp(each.logprob),
                "effect": answer.logprob - each.logprob,
                "instead": self._pieces.shown(each.best),
            }
            for each in hidden
        ]
        return {
            **self._located(query, mask),
            "token": self._pieces.shown(answer.id),
            "id": answer.id,
            "probability": math.exp(answer.logprob),
            **_partly(answer.id, choices),
            "words": words,
        }

    def score(self, read: Text, counted: np.ndarray, logprobs: np.ndarray) -> Score:
        """Return a text's score: the sum of ln p over the tokens that count."""
        tokens: list[ScoredToken] = [
            {"token": self._pieces.shown(int(read.ids[position])), "logprob": float(logprob)}
            for position, logprob in zip(counted, logprobs, strict=True)
        ]
        total = float(logprobs.sum())
        perplexity = math.exp(min(-total / len(counted), 700))  # e^700 is near the largest float
        unknown = int((read.ids[counted] == self._reader.bundle.special.unk_id).sum())
        unknown += left_out(read.text, read.offsets)
        return {"text": read.text, "score": total, "perplexity": perplexity, "unknown": unknown, "tokens": tokens}

    def _located(self, query: Text, mask: int) -> Located:
        start, end = query.spans[mask]
        located: Located = {"position": len(query.text[: start + 1].split()) - 1, "start": start, "end": end}
        if self._reader.is_long(query):
            first, last = self._reader.seen(query, int(query.at[mask]))
            located["window"] = {"start": first, "end": last}
        return located


def _partly(id: int, choices: Choices) -> Partly:
    words = choices.first_piece_of(id)
    return {"first_piece_of": words} if words else {}
