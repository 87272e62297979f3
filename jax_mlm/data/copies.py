"""Documents that are the same, found by the hashes that the token files keep of their texts."""

from __future__ import annotations

import numpy as np

from jax_mlm.data.token_files import TokenFiles

BLOCK = 1 << 22
"""Documents looked at together."""


def without_copies(
    files: TokenFiles, ids: np.ndarray, other: TokenFiles | None = None, other_ids: np.ndarray | None = None
) -> np.ndarray:
    """Return the ids of the documents that stand neither earlier in the text nor among those of the other one."""
    digests = _digests(files)[ids]
    order = np.argsort(digests, kind="stable")  # among equals, the first stays the first
    ordered = digests[order]
    first = np.ones(len(ids), bool)
    first[order[1:]] = ordered[1:] != ordered[:-1]
    if other is not None and other_ids is not None:
        first &= ~np.isin(digests, _digests(other)[other_ids])
    return ids[first]


def copies(valid: TokenFiles, valid_ids: np.ndarray, train: TokenFiles, train_ids: np.ndarray) -> int:
    """Return how many of the documents to validate on stand in the text to train on as well."""
    if valid.digests is None or train.digests is None:
        return 0
    wanted, each = np.unique(valid.digests[valid_ids], return_inverse=True)
    found = np.zeros(len(wanted), bool)
    for at in range(0, len(train_ids), BLOCK):
        block = train.digests[train_ids[at : at + BLOCK]]
        place = np.minimum(np.searchsorted(wanted, block), len(wanted) - 1)
        found[place[wanted[place] == block]] = True
    return int(found[each].sum())


def _digests(files: TokenFiles) -> np.ndarray:
    assert files.digests is not None, "--dedup is as old as the hashes"
    return files.digests
