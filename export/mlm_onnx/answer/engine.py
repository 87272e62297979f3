"""Rows of tokens → results reduced from their logits, and embeddings; rows of equal shape run together, unpadded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mlm_onnx.answer.session import FLOATS, INTEGERS, Session
from mlm_onnx.bundle.background import BackgroundTask
from mlm_onnx.bundle.layout import CLASSIFY, EMBED_GRAPH, FILL, TAG, BundleError, QueryError
from mlm_onnx.bundle.read import Bundle

if TYPE_CHECKING:
    from concurrent.futures import Future

TOKENS_A_RUN = 2048
"""Rows of one length run together up to this many tokens; larger runs are not faster on a CPU."""
LOGITS_A_RUN = 1 << 25
"""Rows also run together only up to this many logits (128 MB)."""
FEWER_BYTES = 1 << 23
"""Below this many bytes of weights, one thread answers faster than several."""
EMBED_PORTS = {"input_ids": INTEGERS, "embedding": FLOATS}
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """The token ids that the model reads, and the positions at which it predicts."""

    ids: np.ndarray
    at: np.ndarray
    """Token positions."""
    types: np.ndarray | None = None
    """Token types of ids, for a graph that reads them."""


def default_threads() -> int:
    """Return the number of cores this process may use, at most four: one query cannot keep more busy."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min(4, cores))


def checked(threads: int | None) -> int:
    """Return how many threads to compute with; a QueryError if it is not a number of them."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise QueryError(f"threads must be at least 1, not {threads!r}")
    return threads or default_threads()


def side_by_side(run: Callable[[Item], Result], items: Sequence[Item], threads: int) -> Iterator[Result]:
    """Yield run(item) for each item in order, running several at once; at most 2 × threads results wait to be taken."""
    if threads == 1 or len(items) < 2:
        yield from map(run, items)
        return
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and one text does not need it

    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(min(threads, len(items)), "mlm_onnx")
    try:
        for item in items:
            if len(waiting) == 2 * threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(run, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities over the last axis, in float32."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the k largest scores, largest first; among equal scores, the smaller index first."""
    if k < len(scores):
        cut = np.partition(scores, len(scores) - k)[len(scores) - k]
        chosen = np.flatnonzero(scores >= cut)
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")][:k]


class Engine:
    """Runs the fast graphs of a bundle, several runs at once in threads.

    Args:
        outputs: logits at one position: of each token of the table, of each label, or of an answer's two ends.
        types: whether the graph reads token types.
    """

    def __init__(self, bundle: Bundle, threads: int, outputs: int, types: bool = False) -> None:
        self.bundle, self.threads, self.outputs = bundle, threads, outputs
        a_run = 1 if bundle.manifest["files"][bundle.files.data]["size"] < FEWER_BYTES else threads
        read = ("input_ids", *(("positions",) if bundle.task in (FILL, TAG) else ()), *(("token_type_ids",) * types))
        self._read = read
        self._fast = Session(bundle, bundle.files.graph, {**dict.fromkeys(read, INTEGERS), "logits": FLOATS}, a_run)
        self._embed = Session(bundle, EMBED_GRAPH, EMBED_PORTS, a_run)
        self._opening = BackgroundTask(self._fast.opened)

    def wait(self) -> None:
        """Block until the session has opened in the background; after this, nothing reads the bundle's files.

        Raises:
            BundleError: the session cannot be opened.
        """
        try:
            self._opening.result()
        finally:
            self.bundle.settle()

    def positions_a_row(self) -> int:
        """Return how many positions of one row the model may predict in one run."""
        return max(1, LOGITS_A_RUN // self.outputs)

    def map(self, rows: Sequence[Row], reduce: Callable[[int, np.ndarray], Result]) -> list[Result]:
        """Return reduce(row index, logits) for each row, in the order of the rows.

        The logits of a row are [P, K] at its positions; of a classifier [K], and of an answer [S, 2] at every token.
        `reduce` runs in the thread that computed the logits, which are freed when it returns, so it may keep copies of
        them but not views.
        """

        def run(chosen: list[int]) -> list[Result]:
            (b, s), p = (len(chosen), len(rows[chosen[0]].ids)), len(rows[chosen[0]].at)
            each = {name: [_given(name, rows[index]) for index in chosen] for name in self._read}
            inner = (p,) if self.bundle.task in (FILL, TAG) else () if self.bundle.task == CLASSIFY else (s,)
            logits = self._fast.run(
                (b, *inner, self.outputs), **{name: np.stack(parts) for name, parts in each.items()}
            )
            return [reduce(index, row) for index, row in zip(chosen, logits, strict=True)]

        return self._in_order([(len(row.ids), len(row.at)) for row in rows], run)

    def embedding_width(self) -> int:
        """Return how many numbers an embedding has."""
        width = self._embed.opened().get_outputs()[0].shape[-1]
        if not isinstance(width, int):
            raise BundleError(f"{self.bundle.file(EMBED_GRAPH)} does not declare the width of its embeddings")
        return width

    def embeddings(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the mean hidden state [D] of each row of ids, in the order of the rows."""
        width = self.embedding_width()

        def run(chosen: list[int]) -> list[np.ndarray]:
            ids = np.stack([rows[index] for index in chosen])
            return list(self._embed.run((len(chosen), width), input_ids=ids))

        return self._in_order([(len(ids), 0) for ids in rows], run)

    def _in_order(self, shapes: Sequence[tuple[int, int]], run: Callable[[list[int]], list[Result]]) -> list[Result]:
        """Run rows of equal (length, positions) together; return the results in the order of the rows."""
        alike = list(self._alike(shapes))
        by_index: dict[int, Result] = {}
        for chosen, results in zip(alike, side_by_side(run, alike, self.threads), strict=True):
            by_index.update(zip(chosen, results, strict=True))
        return [by_index[index] for index in range(len(shapes))]

    def _alike(self, shapes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
        """Yield the indices of rows of equal (length, positions) that run together."""
        alike: dict[tuple[int, int], list[int]] = {}
        for index, shape in enumerate(shapes):
            alike.setdefault(shape, []).append(index)
        for (length, asked), members in alike.items():
            together = max(1, min(TOKENS_A_RUN // length, LOGITS_A_RUN // max(1, asked * self.outputs)))
            if self.bundle.manifest.get("dtype") == "int8":
                together = 1  # int8 activations share scales across a run; alone, a text always gets the same answer
            for start in range(0, len(members), together):
                yield members[start : start + together]


def _given(port: str, row: Row) -> np.ndarray:
    """Return what a graph's input takes from a row."""
    match port:
        case "positions":
            return row.at
        case "token_type_ids" if row.types is not None:
            return row.types
        case _:
            return row.ids
