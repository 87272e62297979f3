"""Packs documents into rows of equal length: which pieces make up each row.

A document longer than a row is cut into windows. What is left of it, and shorter documents, are packed over the
histogram of their lengths (Krell et al. 2021, "Efficient sequence packing without cross-contamination"), longest first
into the row they fill best: the cost is that of the lengths, not of the documents. Rows that stay too empty, because no
lengths fit together, are cut anew from their documents laid end to end.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

WASTE = 0.01
"""Part of all positions that may be padding before documents are cut to fill rows."""
TOGETHER = 1 << 20
"""Documents packed with each other: enough to fill rows, and few enough to bound the memory it takes."""


class Plan(NamedTuple):
    """The pieces of the rows, row after row."""

    starts: np.ndarray
    """[pieces] int64: first token of each piece in the token files."""
    sizes: np.ndarray
    """[pieces] int32: its tokens, without the frame around them."""
    first: np.ndarray
    """[rows + 1] int64: the first piece of each row."""


def plan_rows(starts: np.ndarray, sizes: np.ndarray, length: int, frame: int) -> Plan:
    """Pack documents, given by first token and size, into rows of `length`; each piece needs `frame` positions more."""
    blocks = range(0, len(sizes), TOGETHER)
    plans = [_plan(starts[i : i + TOGETHER], sizes[i : i + TOGETHER], length, frame) for i in blocks]
    before = np.cumsum([0, *(len(plan.starts) for plan in plans)])
    return Plan(
        np.concatenate([plan.starts for plan in plans]),
        np.concatenate([plan.sizes for plan in plans]),
        np.concatenate([[0], *(plan.first[1:] + n for plan, n in zip(plans, before, strict=False))]),
    )


def whole_rows(starts: np.ndarray, sizes: np.ndarray, length: int) -> Plan:
    """Pack pieces into rows of `length` without cutting any."""
    return _packed(starts, sizes, length, 0)


def _plan(starts: np.ndarray, sizes: np.ndarray, length: int, frame: int) -> Plan:
    starts, sizes = windows(starts, sizes, length - frame)
    plan = _packed(starts, sizes, length, frame)
    used = _used(plan, frame)
    if length * len(used) - used.sum() > WASTE * length * len(used):
        # Keep the fullest rows, as many as stay within half of the waste that is allowed; lay the others end to end.
        order = np.argsort(-used, kind="stable")
        waste = np.cumsum(length - used[order])
        kept = int(np.searchsorted(waste, WASTE / 2 * length * len(used), "right"))
        good, poor = _chosen(plan, np.sort(order[:kept])), _chosen(plan, np.sort(order[kept:]))
        by_place = np.argsort(poor.starts, kind="stable")
        cut = _end_to_end(poor.starts[by_place], poor.sizes[by_place], length, frame)
        if len(cut.first) < len(poor.first):
            plan = Plan(
                np.concatenate([good.starts, cut.starts]),
                np.concatenate([good.sizes, cut.sizes]),
                np.concatenate([good.first, cut.first[1:] + len(good.starts)]),
            )
    # In the order of the text: neighbours on disk, and a fair sample in any stretch of rows.
    return _chosen(plan, np.argsort(plan.starts[plan.first[:-1]], kind="stable"))


def ragged(counts: np.ndarray) -> np.ndarray:
    """0 … count - 1 for each count, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def windows(starts: np.ndarray, sizes: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut documents into windows of `width`, the last one shorter."""
    counts = -(-sizes // width)
    at = ragged(counts) * width
    return np.repeat(starts, counts) + at, np.minimum(width, np.repeat(sizes, counts) - at).astype(np.int32)


def _used(plan: Plan, frame: int) -> np.ndarray:
    """Count the positions of each row that are not padding."""
    total = np.concatenate([[0], np.cumsum(plan.sizes.astype(np.int64) + frame)])
    return np.diff(total[plan.first])


def _chosen(plan: Plan, rows: np.ndarray) -> Plan:
    """Return the plan of these rows alone, in this order."""
    counts = np.diff(plan.first)[rows]
    at = np.repeat(plan.first[rows], counts) + ragged(counts)
    return Plan(plan.starts[at], plan.sizes[at], np.concatenate([[0], np.cumsum(counts)]))


def _packed(starts: np.ndarray, sizes: np.ndarray, length: int, frame: int) -> Plan:
    """Put whole pieces into rows, by the histogram of their lengths."""
    histogram = np.bincount(sizes, minlength=length + 1)
    order = np.argsort(sizes.astype(np.uint16 if length < 1 << 16 else np.int32), kind="stable")
    taken = np.cumsum(histogram) - histogram  # where the next piece of each size stands in `order`
    pieces, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for rows, recipe in _recipes(histogram, length, frame):
        columns = []
        for size, times in recipe:
            columns.append(order[taken[size] : taken[size] + rows * times].reshape(rows, times))
            taken[size] += rows * times
        block = np.concatenate(columns, axis=1)
        pieces.append(block.reshape(-1))
        counts.append(np.full(rows, block.shape[1]))
    chosen = np.concatenate(pieces)
    return Plan(starts[chosen], sizes[chosen], np.concatenate([[0], np.cumsum(np.concatenate(counts))]))


Recipe = tuple[tuple[int, int], ...]
"""What a row holds: (size, how many of it), the longest first."""


def _recipes(histogram: np.ndarray, length: int, frame: int) -> list[tuple[int, Recipe]]:
    """Best fit, longest first, all pieces of a size at once: (rows, what each of them holds)."""
    spaces: list[int] = []
    """Numbers of free positions that some open row has, sorted."""
    open_rows: dict[int, list[tuple[int, Recipe]]] = {}
    done: list[tuple[int, Recipe]] = []

    def put(rows: int, space: int, recipe: Recipe) -> None:
        if space <= frame:
            done.append((rows, recipe))
            return
        if space not in open_rows:
            open_rows[space] = []
            insort(spaces, space)
        open_rows[space].append((rows, recipe))

    for size in range(len(histogram) - 1, 0, -1):
        left, need = int(histogram[size]), size + frame
        while left:
            at = bisect_left(spaces, need)
            if at == len(spaces):  # new rows, each with as many of this size as it can hold
                each = min(length // need, left)
                rows = left // each
                put(rows, length - each * need, ((size, each),))
                left -= rows * each
                continue
            space = spaces[at]
            rows, recipe = open_rows[space].pop()
            if not open_rows[space]:
                del open_rows[space], spaces[at]
            each = min(space // need, left)
            filled = min(rows, left // each)
            put(filled, space - each * need, (*recipe, (size, each)))
            if rows > filled:
                put(rows - filled, space, recipe)
            left -= filled * each
    return done + [row for rows in open_rows.values() for row in rows]


def _end_to_end(starts: np.ndarray, sizes: np.ndarray, length: int, frame: int) -> Plan:
    """Lay pieces end to end, a frame between each two, and cut a row every `length - frame` positions.

    A row begins and ends with a frame of its own, so that it holds `length` positions at most.
    """
    width = length - frame
    ends = np.cumsum(sizes.astype(np.int64) + frame) - frame
    begins = ends - sizes
    row = begins // width
    counts = (ends - 1) // width - row + 1
    rows = np.repeat(row, counts) + ragged(counts)
    low = np.maximum(np.repeat(begins, counts), rows * width)
    high = np.minimum(np.repeat(ends, counts), (rows + 1) * width)
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    return Plan(
        np.repeat(starts, counts) + low - np.repeat(begins, counts),
        (high - low).astype(np.int32),
        np.concatenate([first, [len(rows)]]),
    )
