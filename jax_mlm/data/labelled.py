"""Rows of several whole windows side by side, each isolated, with what is to be predicted in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import TrainConfig
from jax_mlm.data.align import Windows
from jax_mlm.data.packing import ragged, whole_rows

if TYPE_CHECKING:
    from jax import Array


class LabelledBatch(NamedTuple):
    """Rows of windows, as numpy arrays or on devices; the first three are what the encoder reads."""

    tokens: np.ndarray | Array
    """[B, S]"""
    segments: np.ndarray | Array
    """[B, S] 0 is padding; equal numbers attend to each other."""
    positions: np.ndarray | Array
    """[B, S] position in the window."""
    types: np.ndarray | Array
    """[B, S] token types: 1 for the second text of a pair, where the tokenizer has it so."""
    at: np.ndarray | Array
    """[B, P] positions of the slots."""
    items: np.ndarray | Array
    """[B, P] number of what is predicted; -1 where a row has fewer slots."""
    targets: np.ndarray | Array
    """[B, P], or [B, P, K] where an item may have several labels."""
    weights: np.ndarray | Array
    """[B, P] 0 where nothing is learned."""
    shares: np.ndarray | Array
    """[B, P] part of its item that the slot answers for."""
    rows: np.ndarray | Array
    """[B] number of the row."""


class Labelled(NamedTuple):
    """What fine-tuning reads."""

    config: TrainConfig
    tokenizer: Tokenizer
    train: LabelledRows
    valid: LabelledRows
    """The rows that choose among checkpoints."""
    fingerprints: dict[str, str]


@dataclass(frozen=True)
class LabelledRows:
    """Which windows make up each row, and the targets of the items."""

    windows: Windows
    pieces: np.ndarray
    """Numbers of windows, row after row."""
    first: np.ndarray
    """[rows + 1] the first of a row."""
    targets: np.ndarray
    """[items] or [items, K]"""
    weights: np.ndarray
    """[items] 0 where the target is not known."""
    length: int
    slots: int
    """Most slots of a row."""
    pad: int

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def documents(self) -> int:
        """Return the most windows of a row, its padding being one of them."""
        return int(np.diff(self.first).max()) + 1

    def gather(self, indices: np.ndarray) -> LabelledBatch:
        """Return the rows of these numbers; a row past the end is all padding."""
        w, B = self.windows, len(indices)
        real = np.flatnonzero(indices < len(self))
        counts = self.first[indices[real] + 1] - self.first[indices[real]]
        number = ragged(counts)
        piece = self.pieces[np.repeat(self.first[indices[real]], counts) + number]
        row = np.repeat(real, counts)
        size = w.first[piece + 1] - w.first[piece]
        column = np.cumsum(size) - size
        heads = np.cumsum(counts) - counts
        column -= np.repeat(column[heads], counts)

        within = ragged(size)
        source = within + np.repeat(w.first[piece], size)
        place = within + np.repeat(row * self.length + column, size)
        in_piece = w.first_slot[piece + 1] - w.first_slot[piece]
        slot = np.repeat(w.first_slot[piece], in_piece) + ragged(in_piece)
        slot_row = np.repeat(row, in_piece)
        per_row = np.bincount(slot_row, minlength=B)
        slot_place = slot_row * self.slots + ragged(per_row)
        items = w.items[slot]

        def laid_out(width: int, at: np.ndarray, values: np.ndarray, fill: float) -> np.ndarray:
            dtype = np.float32 if values.dtype.kind == "f" else np.int32
            out = np.full((B * width, *values.shape[1:]), fill, dtype)
            out[at] = values
            return out.reshape(B, width, *values.shape[1:])

        return LabelledBatch(
            laid_out(self.length, place, w.tokens[source], self.pad),
            laid_out(self.length, place, np.repeat(number + 1, size), 0),
            laid_out(self.length, place, within, 0),
            laid_out(self.length, place, w.types[source], 0),
            laid_out(self.slots, slot_place, w.at[slot] + np.repeat(column, in_piece), 0),
            laid_out(self.slots, slot_place, items, -1),
            laid_out(self.slots, slot_place, self.targets[items], 0),
            laid_out(self.slots, slot_place, (w.shares[slot] * self.weights[items]).astype(np.float32), 0),
            laid_out(self.slots, slot_place, w.shares[slot], 0),
            indices.astype(np.int32),
        )


def pack_windows(
    windows: Windows, targets: np.ndarray, weights: np.ndarray, length: int, pad: int, seed: int = 0
) -> LabelledRows:
    """Put whole windows into rows of `length`; which ones share a row depends on their lengths and on the seed."""
    sizes = np.diff(windows.first)
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    plan = whole_rows(shuffled, sizes[shuffled], length)
    slots = np.diff(windows.first_slot)[plan.starts]
    before = np.concatenate([[0], np.cumsum(slots)])
    most = int(np.diff(before[plan.first]).max())
    return LabelledRows(windows, plan.starts, plan.first, targets, weights, length, max(most, 1), pad)
