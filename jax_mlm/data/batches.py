"""Batches as pure functions of (rows, seed, step): no iterator state to save, and resuming costs nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from jax_mlm.data.packing import plan_rows, ragged, windows
from jax_mlm.data.prepare import TokenFiles
from jax_mlm.data.shuffle import permuted
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.errors import UserError

if TYPE_CHECKING:
    from jax import Array  # text becomes rows without JAX

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Gathered(Protocol[T_co]):
    """Rows that a batch is made of."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> T_co:
        """Return the rows of these numbers; a row past the end is all padding."""
        ...


@dataclass(frozen=True)
class Rows:
    """Which pieces of the token files make up each row."""

    files: TokenFiles
    vocabulary: Vocabulary
    length: int
    pack: Literal["document", "plain"]
    starts: np.ndarray
    """[pieces] int64: first token of each piece; of each document, where documents are packed plainly."""
    sizes: np.ndarray
    """[pieces]: its tokens, without [CLS] and [SEP]."""
    first: np.ndarray
    """[rows + 1] int64: first piece of each row; [documents + 1] positions in the stream, where packed plainly."""

    def __len__(self) -> int:
        return len(self.first) - 1 if self.pack == "document" else -(-int(self.first[-1]) // self.length)

    @property
    def documents(self) -> int:
        """Return the most documents of a row, its padding being one of them; 1 where all of a row is one."""
        return int(np.diff(self.first).max()) + 1 if self.pack == "document" else 1

    def gather(self, indices: np.ndarray) -> Batch:
        """Return the rows of these numbers; a row past the end is all padding."""
        return _gather(self, indices)


class Batch(NamedTuple):
    """Rows of tokens, int32, as numpy arrays or on devices; the first three are what the encoder reads."""

    tokens: np.ndarray | Array
    """[B, S]"""
    segments: np.ndarray | Array
    """[B, S] 0 is padding; equal numbers attend to each other."""
    positions: np.ndarray | Array
    """[B, S]"""
    words: np.ndarray | Array
    """[B, S] number of the word in its row, from 0; -1 for padding, [CLS] and [SEP]."""
    rows: np.ndarray | Array
    """[B] number of the row, in the global batch or, where batches are asked for by row, in the data set."""


class _Spans(NamedTuple):
    """One entry per contiguous run of a framed piece in the batch, as parallel arrays."""

    row: np.ndarray
    """Row of the batch."""
    column: np.ndarray
    """Where it begins in the row."""
    start: np.ndarray
    """Where the whole piece begins in the token files."""
    whole: np.ndarray
    """Tokens of the whole piece, its frame included."""
    begin: np.ndarray
    """First token of the piece that belongs to the run."""
    size: np.ndarray
    """Tokens of the run."""
    number: np.ndarray
    """Which one of its row it is, from 1."""


def pack_rows(
    files: TokenFiles,
    vocabulary: Vocabulary,
    length: int,
    pack: Literal["document", "plain"],
    documents: slice | np.ndarray | None = None,
) -> Rows:
    """Plan rows over the chosen documents (all of them, by default).

    `document` frames each piece of a document by [CLS] and [SEP] and keeps attention inside; `plain` lays the framed
    documents end to end and cuts every `length` tokens. Raises UserError where a row is too short for a token.
    """
    frame = _frame(vocabulary)
    if length <= frame:
        raise UserError(f"--length {length} leaves no room for text: give more than {frame}")
    starts, ends = files.documents[:-1], files.documents[1:]
    if documents is not None:
        starts, ends = starts[documents], ends[documents]
    sizes = ends - starts
    if not len(sizes):
        raise UserError("--data: there is no document to make rows of")
    if pack == "plain":
        return Rows(files, vocabulary, length, pack, starts, sizes, np.concatenate([[0], np.cumsum(sizes + frame)]))
    return Rows(files, vocabulary, length, pack, *plan_rows(starts, sizes, length, frame))


def split_documents(n_documents: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of the documents to train on and of those held out, each in order; at least one of each."""
    check_split(n_documents, fraction)
    count = min(max(1, round(n_documents * fraction)), n_documents - 1)
    valid = np.sort(permuted(np.arange(count), n_documents, seed, 0))
    train = np.ones(n_documents, bool)
    train[valid] = False
    return np.flatnonzero(train), valid


def check_split(n_documents: int, fraction: float) -> None:
    """Raise a UserError where no documents can be held out."""
    if n_documents < 2:
        raise UserError(
            "the data are a single document, of which none can be held out: give --valid, or a smaller --document "
            "(the smallest is a line: put line ends between the sentences)"
        )
    if not 0 < fraction < 1:
        raise UserError(f"--valid-fraction {fraction} must lie between 0 and 1")


def token_counts(rows: Rows, size: int) -> np.ndarray:
    """[size] how often each id occurs in the text of these rows, [CLS] and [SEP] around documents not counted."""
    starts, sizes = windows(rows.starts, rows.sizes, 1 << 20)
    counts, ends = np.zeros(size, np.int64), np.cumsum(sizes, dtype=np.int64)
    cuts = np.searchsorted(ends, np.arange(0, int(ends[-1]) + (1 << 22), 1 << 22), "left")
    for low, high in itertools.pairwise(np.unique([*cuts, len(ends)]).tolist()):
        at = np.repeat(starts[low:high], sizes[low:high]) + ragged(sizes[low:high])
        counts += np.bincount(rows.files.tokens[at], minlength=size)
    return counts


def batch_at(
    rows: Gathered[Any], step: int, seed: int, batch: int, shard: tuple[int, int] = (0, 1)
) -> Any:  # as gather
    """Return the training batch of a step: each row once per epoch, in a different order in every epoch.

    Args:
        rows: the training rows.
        step: counted from 0; the cost does not depend on it.
        seed: of the order.
        batch: rows of the global batch.
        shard: (index, count) of this host's contiguous part of the global batch.
    """
    index, count = shard
    if batch % count:
        raise UserError(f"--batch {batch} does not divide over {count} hosts: choose a multiple of {count}")
    within = np.arange(batch // count * index, batch // count * (index + 1))
    epoch, at = np.divmod(step * batch + within, len(rows))
    return rows.gather(permuted(at, len(rows), seed, epoch))._replace(rows=within.astype(np.int32))


def batch_of(rows: Gathered[T_co], indices: np.ndarray) -> T_co:
    """Return the rows of these numbers; a row past the end is all padding."""
    return rows.gather(np.asarray(indices, np.int64))


# Rows to arrays


def _frame(vocabulary: Vocabulary) -> int:
    return (vocabulary.cls is not None) + (vocabulary.sep is not None)


def _gather(rows: Rows, indices: np.ndarray) -> Batch:
    shape = (len(indices), rows.length)
    vocabulary, has_cls = rows.vocabulary, int(rows.vocabulary.cls is not None)
    real = np.flatnonzero(indices < len(rows))
    spans = (_document_spans if rows.pack == "document" else _plain_spans)(rows, real, indices[real])

    within = ragged(spans.size)
    column = within + np.repeat(spans.column, spans.size)
    slot = column + np.repeat(spans.row * rows.length, spans.size)
    within += np.repeat(spans.begin, spans.size)  # position in the whole framed piece
    is_cls = (within == 0) & (vocabulary.cls is not None)
    is_sep = (within == np.repeat(spans.whole, spans.size) - 1) & (vocabulary.sep is not None)
    content = ~(is_cls | is_sep)
    at = np.clip(within - has_cls + np.repeat(spans.start, spans.size), 0, len(rows.files.tokens) - 1)

    tokens = rows.files.tokens[at].astype(np.int32)
    tokens[is_cls] = -1 if vocabulary.cls is None else vocabulary.cls
    tokens[is_sep] = -1 if vocabulary.sep is None else vocabulary.sep
    opens = within == np.repeat(np.maximum(spans.begin, has_cls), spans.size)
    begins = content & (opens | rows.files.begins_word(at))
    counted = np.cumsum(begins)
    row_counts = np.bincount(slot // rows.length, weights=begins, minlength=shape[0]).astype(np.int64)
    before = np.cumsum(row_counts) - row_counts
    words = np.where(content, counted - before[slot // rows.length] - 1, -1)
    segments = np.repeat(spans.number, spans.size)

    def laid_out(values: np.ndarray, fill: int) -> np.ndarray:
        out = np.full(shape, fill, np.int32)
        out.reshape(-1)[slot] = values
        return out

    return Batch(
        laid_out(tokens, vocabulary.pad),
        laid_out(segments, 0),
        laid_out(within if rows.pack == "document" else column, 0),
        laid_out(words, -1),
        indices.astype(np.int32),
    )


def _document_spans(rows: Rows, slots: np.ndarray, indices: np.ndarray) -> _Spans:
    counts = rows.first[indices + 1] - rows.first[indices]
    number = ragged(counts)
    piece = np.repeat(rows.first[indices], counts) + number
    size = rows.sizes[piece].astype(np.int64) + _frame(rows.vocabulary)
    column = np.cumsum(size) - size
    heads = np.cumsum(counts) - counts
    column -= np.repeat(column[heads], counts)
    return _Spans(np.repeat(slots, counts), column, rows.starts[piece], size, np.zeros_like(size), size, number + 1)


def _plain_spans(rows: Rows, slots: np.ndarray, indices: np.ndarray) -> _Spans:
    low, high = indices * rows.length, np.minimum((indices + 1) * rows.length, rows.first[-1])
    head = np.searchsorted(rows.first, low, "right") - 1
    counts = np.searchsorted(rows.first, high, "left") - head
    document = np.repeat(head, counts) + ragged(counts)
    low, high = np.repeat(low, counts), np.repeat(high, counts)
    whole_low, whole_high = rows.first[document], rows.first[document + 1]
    begin, end = np.maximum(low, whole_low), np.minimum(high, whole_high)
    size = end - begin
    return _Spans(
        np.repeat(slots, counts), begin - low, rows.starts[document], whole_high - whole_low, begin - whole_low, size,
        np.ones_like(size),
    )  # fmt: skip
