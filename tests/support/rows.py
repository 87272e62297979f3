"""From texts to rows, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import DataConfig
from jax_mlm.data.batches import Batch, Rows, batch_of
from jax_mlm.data.prepare import Progress, prepare
from jax_mlm.data.token_files import TokenFiles
from jax_mlm.data.tokenizer import vocabulary_of


def batch_in_order(rows: Rows, start: int, batch: int) -> Batch:
    """Return rows start … start + batch - 1; those past the end are all padding."""
    return batch_of(rows, np.arange(start, start + batch))


def prepared(
    paths: Sequence[Path], tokenizer: Tokenizer, cfg: DataConfig, cache: Path, progress: Progress | None = None
) -> TokenFiles:
    """Return token files made with the tokenizer's own vocabulary."""
    return prepare(paths, tokenizer, vocabulary_of(tokenizer), cfg, cache, progress)
