"""What a run says at its end: the held-out figures beside a baseline, and what to type next."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jax_mlm.config import SENTENCE
from jax_mlm.data import token_counts
from jax_mlm.dataset import Dataset
from jax_mlm.evaluate import Result
from jax_mlm.loss import unigram_baseline


def print_result(data: Dataset, result: Result) -> None:
    """Prints the held-out figures beside those of guessing by frequency alone."""
    size = data.vocabulary.size
    ordinary = np.setdiff1d(np.arange(size), data.vocabulary.special)
    loss, accuracy = unigram_baseline(
        token_counts(data.train, size)[ordinary], token_counts(data.valid, size)[ordinary]
    )
    print(f"validation, {int(result.count)} targets at 15 % masks (80/10/10), {len(data.valid)} rows")
    print(f"  this model         loss {result.loss:.4f}   accuracy {result.accuracy:.4f}")
    print(f"  unigram baseline   loss {loss:.4f}   accuracy {accuracy:.4f}")


def print_next(run: Path, own_text: bool) -> None:
    """Prints the commands that turn the run into answers."""
    query = "… [MASK] …" if own_text else SENTENCE.replace("creates", "[MASK]")
    print("next:")
    print(f"  python -m mlm_onnx convert {run} bundles/{run.name}")
    print(f'  python -m mlm_onnx fill bundles/{run.name} "{query}"')
