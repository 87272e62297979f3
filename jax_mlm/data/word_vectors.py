"""Word vectors from counts: what a table of embeddings can begin with instead of random numbers.

Tokens that stand in the same company get similar vectors (Levy and Goldberg 2014: a factorised matrix of pointwise
mutual information is what skip-gram learns), in seconds, where training takes its first hundreds of steps for that.
"""

from __future__ import annotations

import numpy as np

from jax_mlm.data.batches import Rows
from jax_mlm.data.packing import ragged, windows

REACH = 4
"""Tokens on each side that are counted as a token's company, in proportion to 1 / distance."""
SAMPLE = 4_000_000
"""Most tokens that are counted, in pieces that are spread evenly over the text."""
CELLS = 1 << 25
"""Entries of the matrix of counts: of a larger vocabulary, fewer of the most frequent tokens count as company."""
SMOOTHING = 0.75
"""Power of the frequencies of the company, so that rare tokens count less (Levy, Goldberg and Dagan 2015)."""
FURTHER, ROUNDS = 32, 2
"""Columns that the factorisation adds while it works, and how often it multiplies by the matrix and back."""


def word_vectors(rows: Rows, vocabulary: int, width: int, std: float, seed: int) -> np.ndarray:
    """Return vectors [V, E] in float32 of length `std`·√E, in directions that the rows' text gives them.

    A token without company gets a random one. The same arguments give the same vectors on one machine, and nearly the
    same on any.
    """
    draw = np.random.default_rng(seed)
    association = _association(*_sampled(rows), vocabulary)
    vectors = _factor(association, min(width, *association.shape), draw)
    turn, _ = np.linalg.qr(draw.standard_normal((width, width), np.float32))  # every column is as important
    vectors = vectors @ turn[: vectors.shape[1]]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    alone = lengths[:, 0] <= 1e-3 * np.median(lengths)
    vectors *= std * width**0.5 / np.maximum(lengths, 1e-30)
    vectors[alone] = std * draw.standard_normal((int(alone.sum()), width), np.float32)
    return vectors


def _sampled(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens of pieces of the text, and the number of each one's piece."""
    starts, sizes = rows.starts, rows.sizes
    if rows.pack == "plain":  # whole documents, of any length
        starts, sizes = windows(starts, sizes, rows.length)
    if (total := int(sizes.sum())) > SAMPLE:
        chosen = np.unique(np.linspace(0, len(starts) - 1, max(1, len(starts) * SAMPLE // total)).astype(np.int64))
        starts, sizes = starts[chosen], sizes[chosen]
    at = np.repeat(starts, sizes) + ragged(sizes)
    return rows.files.tokens[at].astype(np.int64), np.repeat(np.arange(len(sizes)), sizes)


def _association(tokens: np.ndarray, pieces: np.ndarray, vocabulary: int) -> np.ndarray:
    """Return the positive pointwise mutual information [V, C] of tokens and the most frequent ones near them."""
    company = min(vocabulary, max(1, CELLS // vocabulary))
    order = np.argsort(-np.bincount(tokens, minlength=vocabulary), kind="stable")
    rank = np.full(vocabulary, -1)
    rank[order[:company]] = np.arange(company)
    counts = np.zeros(vocabulary * company, np.float32)
    for distance in range(1, REACH + 1):
        near = pieces[:-distance] == pieces[distance:]
        left, right = tokens[:-distance][near], tokens[distance:][near]
        for of, other in ((left, rank[right]), (right, rank[left])):
            seen = np.bincount((of * company + other)[other >= 0], minlength=len(counts))
            counts += np.divide(seen, distance, dtype=np.float32)
    counts = counts.reshape(vocabulary, company)
    of, with_ = counts.sum(1, keepdims=True), counts.sum(0) ** SMOOTHING
    for part in (of, with_ / max(with_.sum(), 1e-30)):  # in place: a copy is as large
        counts /= np.maximum(part, 1e-30)
    np.maximum(counts, 1.0, out=counts)
    return np.log(counts, out=counts)


def _factor(matrix: np.ndarray, width: int, draw: np.random.Generator) -> np.ndarray:
    """Return U·√S [M, width] of the largest singular values, by random projection (Halko, Martinsson, Tropp 2011)."""
    columns = min(width + FURTHER, *matrix.shape)
    basis, _ = np.linalg.qr(matrix @ draw.standard_normal((matrix.shape[1], columns), np.float32))
    for _ in range(ROUNDS):
        basis, _ = np.linalg.qr(matrix @ (matrix.T @ basis))
    left, values, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left[:, :width]) * np.sqrt(values[:width])
