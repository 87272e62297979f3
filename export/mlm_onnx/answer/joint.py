"""Several masks filled together: a beam over fill orders.

A masked model defines no joint distribution: p(a, b) depends on which of them is filled first. What is searched here is
the product along one order, ln p(first | rest masked) + ln p(second | first filled, rest masked) + …, and for each
filling the best order that the beam met; hence pseudo-joint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from mlm_onnx.answer.reader import Text

Result = TypeVar("Result")
Choose = Callable[[np.ndarray, int], np.ndarray]
"""(log-probabilities [V], k) → the k likeliest ids that may be an answer, the likeliest first."""


class Ask(Protocol):
    """Asks the model about some positions of some texts."""

    def __call__(
        self, asked: Sequence[tuple[Text, np.ndarray]], reduce: Callable[[int, int, np.ndarray], Result]
    ) -> list[list[Result]]:
        """Return reduce(text index, position index, log-probabilities [V]) for each position of each text."""
        ...


@dataclass(frozen=True)
class Filling:
    """A text's masks, some or all of them filled."""

    ids: tuple[tuple[int, int], ...]
    """(mask, id) in the order of filling."""
    logprob: float
    """Natural logarithm of the product along that order."""


def fill_jointly(text: Text, ask: Ask, choose: Sequence[Choose], width: int) -> list[Filling]:
    """Return the likeliest fillings of all masks, at most `width`, the likeliest first.

    After each filled mask, the remaining ones are scored again.

    Args:
        choose: for each mask.
    """
    beam = [Filling((), 0.0)]
    for _ in text.at:
        found: dict[frozenset[tuple[int, int]], Filling] = {}
        left = [[mask for mask in range(len(text.at)) if mask not in dict(filling.ids)] for filling in beam]

        def likeliest(
            filling: int, position: int, logprobs: np.ndarray, left: Sequence[Sequence[int]] = left
        ) -> list[tuple[int, float]]:
            return [(int(id), float(logprobs[id])) for id in choose[left[filling][position]](logprobs, width)]

        asked = [(_filled(text, filling), text.at[masks]) for filling, masks in zip(beam, left, strict=True)]
        for filling, masks, answers in zip(beam, left, ask(asked, likeliest), strict=True):
            for mask, answer in zip(masks, answers, strict=True):
                for id, logprob in answer:
                    ids = (*filling.ids, (mask, id))
                    longer = Filling(ids, filling.logprob + logprob)
                    known = found.get(frozenset(ids))
                    if known is None or (longer.logprob, known.ids) > (known.logprob, longer.ids):
                        found[frozenset(ids)] = longer
        beam = sorted(found.values(), key=lambda filling: (-filling.logprob, filling.ids))[:width]
    return beam


def _filled(text: Text, filling: Filling) -> Text:
    ids = text.ids.copy()
    for mask, id in filling.ids:
        ids[text.at[mask]] = id
    return text.with_ids(ids)
