"""Several masks filled together: a beam over fill orders.

A masked model defines no joint distribution: p(a, b) depends on which of them is filled first. What is searched here is
the product along one order, ln p(first | rest masked) + ln p(second | first filled, rest masked) + …, and for each
filling the best order that the beam met; hence pseudo-joint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mlm_onnx.answer.reader import Text

Ask = Callable[[Sequence[tuple[Text, np.ndarray]]], Iterable[tuple[int, np.ndarray, np.ndarray]]]
"""(text, places) pairs → (which pair, indices into its places, log-probabilities [P, V]), in any order."""
Choose = Callable[[np.ndarray, int], np.ndarray]
"""(log-probabilities [V], k) → the k likeliest ids that may be an answer, the likeliest first."""


@dataclass(frozen=True)
class Filling:
    """Some masks of a text, filled."""

    ids: tuple[tuple[int, int], ...]
    """(mask, id) in the order of filling."""
    logprob: float
    """Natural logarithm of the product along that order."""


def fill_jointly(text: Text, ask: Ask, choose: Choose, width: int) -> list[Filling]:
    """The likeliest fillings of all masks, at most `width`, the likeliest first; re-scored after each filled mask."""
    beam = [Filling((), 0.0)]
    for _ in text.at:
        found: dict[frozenset[tuple[int, int]], Filling] = {}
        left = [[mask for mask in range(len(text.at)) if mask not in dict(filling.ids)] for filling in beam]
        asked = [(_filled(text, filling), text.at[masks]) for filling, masks in zip(beam, left, strict=True)]
        for which, indices, logprobs in ask(asked):
            for index, row in zip(indices, logprobs, strict=True):
                for id in choose(row, width):
                    ids = (*beam[which].ids, (left[which][index], int(id)))
                    longer = Filling(ids, beam[which].logprob + float(row[id]))
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
