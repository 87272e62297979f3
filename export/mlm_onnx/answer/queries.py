"""What may be asked: texts, top_k and targets are checked here, before anything is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mlm_onnx.answer.engine import top
from mlm_onnx.answer.pieces import Pieces
from mlm_onnx.answer.reader import Text, check_utf8
from mlm_onnx.bundle.layout import Limits, QueryError, Special

TOP_K = 5
ANSWER_CHARACTERS = 1 << 28
"""Most characters of all the filled-in sentences of one answer."""
JOINT_MASKS = 16
"""Most masks of a text that are filled jointly or explained."""
WIDEST_BEAM = 64


class Ranked(NamedTuple):
    """A token as the model ranks it at one position."""

    id: int
    logprob: float
    rank: int | None = None
    """Among all tokens, 1 being the likeliest; only where targets are given."""


@dataclass(frozen=True)
class Choices:
    """The tokens that may be an answer."""

    never: np.ndarray
    """Ids that are never one."""
    wanted: Mapping[int, list[str]] | None = None
    """Ids of the only ones that may be, where targets are given → the targets of which each is only the first piece."""

    def best(self, logprobs: np.ndarray, k: int) -> np.ndarray:
        """Return the k likeliest ids, the likeliest first."""
        if self.wanted is None:
            ranked = logprobs.copy()
            ranked[self.never] = -np.inf
            return top(ranked, min(k, len(ranked) - len(self.never)))
        ids = np.array(list(self.wanted), np.int64)
        return ids[top(logprobs[ids], k)]

    def ranked(self, logprobs: np.ndarray, k: int) -> list[Ranked]:
        """Return the k likeliest tokens, the likeliest first."""
        best = [Ranked(id, float(logprobs[id])) for id in self.best(logprobs, k).tolist()]
        if self.wanted is None:
            return best
        every = np.delete(logprobs, self.never)
        return [each._replace(rank=1 + int((every > logprobs[each.id]).sum())) for each in best]

    def first_piece_of(self, id: int) -> list[str]:
        """Return the targets of which an id is only the first piece."""
        return [] if self.wanted is None else self.wanted[id]


def read_all(text: str | Sequence[str], limits: Limits, read: Callable[[str], Text]) -> list[Text]:
    """Read the one or several texts of a query, all before any is answered.

    Raises:
        QueryError: they are not texts, or too many; or one cannot be read, and the error names which of several.
    """
    if not isinstance(text, Iterable):
        raise QueryError(f"a text must be a str, or several, not {type(text).__name__}")
    texts = [text] if isinstance(text, str) else list(text)
    if len(texts) > limits.max_texts:
        raise QueryError(f"{len(texts)} texts at once; the limit is {limits.max_texts}")
    for each in texts:
        if not isinstance(each, str):
            raise QueryError(f"a text must be a str, not {type(each).__name__}")
    found = []
    for index, each in enumerate(texts):
        try:
            found.append(read(each))
        except QueryError as error:
            which = f"text {index} (from 0): " if len(texts) > 1 else ""
            raise QueryError(f"{which}{error}") from None
    return found


def how_many(top_k: int | None, choices: Choices, vocab_size: int, limits: Limits) -> int:
    """Return how many candidates each mask gets: `top_k`, else all targets, else 5; never more than there are.

    Raises:
        QueryError: `top_k` is not an integer from 1 to the tokens there are to choose from.
    """
    every = vocab_size - len(choices.never)
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
        QueryError: with what to ask for less of.
    """
    masks = len(query.at)
    if joint and masks > JOINT_MASKS:
        raise QueryError(f"the text holds {masks} masks; jointly or explained, the limit is {JOINT_MASKS}")
    if joint and k > WIDEST_BEAM:
        raise QueryError(f"top_k {k} is more than the {WIDEST_BEAM} that a joint answer may hold")
    if masks * k * len(query.text) > ANSWER_CHARACTERS:
        raise QueryError(
            f"{masks * k} candidates with a text of {len(query.text)} characters each are too much: "
            f"lower top_k or shorten the text"
        )


def check_scored(read: Text, special: Special, never: np.ndarray) -> Text:
    """Return a text that can be scored.

    Raises:
        QueryError: it holds a mask, or nothing that counts.
    """
    if (read.ids == special.mask_id).any():
        raise QueryError(f"a text to score is whole: it may not hold {special.mask}")
    if np.isin(read.ids, never).all():
        raise QueryError("none of the text's words are in the model's vocabulary: nothing to score")
    return read


def choices_of(targets: Sequence[str] | None, first_piece: bool, pieces: Pieces, never: np.ndarray) -> Choices:
    """Return what may be an answer: the targets, or their first pieces where `first_piece` says so, else any token.

    Raises:
        QueryError: the targets are not words, or one of them is not a token.
    """
    if targets is None:
        return Choices(never)
    if not isinstance(targets, Iterable):
        raise QueryError(f"targets must be words, not {type(targets).__name__}")
    words = [targets] if isinstance(targets, str) else list(targets)
    if not words:
        raise QueryError("targets is empty: name at least one word")
    found: dict[int, list[str]] = {}
    for word in words:
        if not isinstance(word, str):
            raise QueryError(f"a target must be a str, not {type(word).__name__}")
        check_utf8(word)
        ids = pieces.of(word)
        known = bool(ids) and not np.isin(ids[:1] if first_piece else ids, never).any()
        if not known or (len(ids) > 1 and not first_piece):
            split = " ".join(pieces.shown(id) for id in ids)
            why = f": it would be split into {split}, of which first_piece takes the first" if known else ""
            raise QueryError(f"target {word[:80]!r} is not one token of this model's vocabulary{why}")
        partly = found.setdefault(ids[0], [])
        if len(ids) > 1 and word not in partly:
            partly.append(word)
    return Choices(never, found)
