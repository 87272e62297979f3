"""Check texts, top_k and targets before anything is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mlm_onnx.answer.engine import top
from mlm_onnx.answer.pieces import Pieces
from mlm_onnx.answer.reader import Text, check_utf8
from mlm_onnx.bundle.layout import Limits, QueryError, Special

Item = TypeVar("Item")
Read = TypeVar("Read")
TOP_K = 5
ANSWER_CHARACTERS = 1 << 28
"""Most characters in all the filled-in sentences of one answer."""
JOINT_MASKS = 16
"""Most masks that a text may have to be filled jointly or explained."""
WIDEST_BEAM = 64


class Ranked(NamedTuple):
    """A token as the model ranks it at one position."""

    id: int
    logprob: float
    rank: int | None = None
    """Among all tokens, 1 being the likeliest; set only if targets are given."""


@dataclass(frozen=True)
class Choices:
    """The tokens that may be an answer."""

    excluded: np.ndarray
    """Ids that are never an answer."""
    wanted: Mapping[int, list[str]] | None = None
    """If targets are given: id of each allowed token → the targets of which it is only the first piece."""

    def best(self, logprobs: np.ndarray, k: int) -> np.ndarray:
        """Return the k likeliest ids, the likeliest first."""
        if self.wanted is None:
            ranked = logprobs.copy()
            ranked[self.excluded] = -np.inf
            return top(ranked, min(k, len(ranked) - len(self.excluded)))
        ids = np.array(list(self.wanted), np.int64)
        return ids[top(logprobs[ids], k)]

    def ranked(self, logprobs: np.ndarray, k: int) -> list[Ranked]:
        """Return the k likeliest tokens, the likeliest first."""
        best = [Ranked(id, float(logprobs[id])) for id in self.best(logprobs, k).tolist()]
        if self.wanted is None:
            return best
        every = np.delete(logprobs, self.excluded)
        return [each._replace(rank=1 + int((every > logprobs[each.id]).sum())) for each in best]

    def first_piece_of(self, id: int) -> list[str]:
        """Return the targets of which an id is only the first piece."""
        return [] if self.wanted is None else self.wanted[id]


def listed(text: Any, limits: Limits, kinds: tuple[type, ...] = (str,)) -> list[Any]:  # Any: whatever a user gives
    """Return the text or texts of a query as a list, each of one of these types.

    Raises:
        QueryError: they are not texts, or are too many.
    """
    if isinstance(text, kinds):
        return [text]
    if not isinstance(text, Iterable):
        raise QueryError(f"a text must be a str or several of them, not {type(text).__name__}")
    texts = list(text)
    if len(texts) > limits.max_texts:
        raise QueryError(f"{len(texts)} texts at once; the limit is {limits.max_texts}")
    for each in texts:
        if not isinstance(each, kinds):
            raise QueryError(f"a text must be a str, not {type(each).__name__}")
    return texts


def read_all(texts: Sequence[Item], read: Callable[[Item], Read]) -> list[Read]:
    """Read the texts of a query, all of them before any is answered.

    Raises:
        QueryError: one cannot be read; the error names which one.
    """
    texts_read = []
    for index, each in enumerate(texts):
        try:
            texts_read.append(read(each))
        except QueryError as error:
            which = f"text {index} (from 0): " if len(texts) > 1 else ""
            raise QueryError(f"{which}{error}") from None
    return texts_read


def how_many(top_k: int | None, choices: Choices, vocab_size: int, limits: Limits) -> int:
    """Return how many candidates each mask gets: `top_k`, else all targets, else 5; never more than exist.

    Raises:
        QueryError: `top_k` is not an integer from 1 to the number of tokens to choose from.
    """
    every = vocab_size - len(choices.excluded)
    there_are = every if choices.wanted is None else len(choices.wanted)
    if top_k is None:
        return min(TOP_K, there_are) if choices.wanted is None else there_are
    if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1:
        raise QueryError(f"top_k must be an integer of at least 1, not {top_k!r}")
    most = min(every, limits.max_top_k)
    if top_k > most:
        raise QueryError(f"top_k {top_k} is more than the {most} tokens there are to choose from")
    return min(int(top_k), there_are)


def check_size(query: Text, k: int, joint: bool) -> None:
    """Refuse what would take too long or too much memory.

    Raises:
        QueryError: the query is too large; the error names what to reduce.
    """
    masks = len(query.at)
    if joint and masks > JOINT_MASKS:
        raise QueryError(f"the text has {masks} masks; the limit for joint answers and explanations is {JOINT_MASKS}")
    if joint and k > WIDEST_BEAM:
        raise QueryError(f"top_k {k} exceeds the limit of {WIDEST_BEAM} for joint answers")
    if masks * k * len(query.text) > ANSWER_CHARACTERS:
        raise QueryError(
            f"{masks * k} candidates with a text of {len(query.text)} characters each are too many: "
            f"lower top_k or shorten the text"
        )


def check_scored(read: Text, special: Special) -> Text:
    """Return the text if it can be scored.

    Raises:
        QueryError: it contains a mask, or no token that counts.
    """
    if (read.ids == special.mask_id).any():
        raise QueryError(f"a text to score may not contain {special.mask}")
    if not len(scored_positions(read, special)):
        raise QueryError("the text has only special tokens: nothing to score")
    return read


def scored_positions(read: Text, special: Special) -> np.ndarray:
    """Return the positions of the tokens that count in a score: all but special ones; unknown ones count."""
    inner = np.arange(read.frame[0], len(read.ids) - read.frame[1])
    ids = read.ids[inner]
    return inner[~np.isin(ids, special.excluded) | (ids == special.unk_id)]


def choices_of(
    targets: Sequence[str] | None, first_piece: bool, pieces: Pieces, excluded: np.ndarray, before: str = " "
) -> Choices:
    """Return the tokens that may be an answer: the targets (with `first_piece`, their first pieces), else any token.

    Args:
        before: the character before the mask, which decides how a word is written there.

    Raises:
        QueryError: the targets are not words, or one of them is not a token.
    """
    if targets is None:
        return Choices(excluded)
    if not isinstance(targets, Iterable):
        raise QueryError(f"targets must be words, not {type(targets).__name__}")
    words = [targets] if isinstance(targets, str) else list(targets)
    if not words:
        raise QueryError("targets is empty: name at least one word")
    wanted: dict[int, list[str]] = {}
    for word in words:
        if not isinstance(word, str):
            raise QueryError(f"a target must be a str, not {type(word).__name__}")
        check_utf8(word)
        ids = pieces.of(word, before)
        known = bool(ids) and not np.isin(ids[:1] if first_piece else ids, excluded).any()
        if not known or (len(ids) > 1 and not first_piece):
            split = " ".join(pieces.shown(id) for id in ids)
            why = f": it would be split into {split}; first_piece would take the first of them" if known else ""
            raise QueryError(f"target {word[:80]!r} is not one token of this model's vocabulary{why}")
        partly = wanted.setdefault(ids[0], [])
        if len(ids) > 1 and word not in partly:
            partly.append(word)
    return Choices(excluded, wanted)
