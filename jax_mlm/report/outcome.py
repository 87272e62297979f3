"""What a run prints when it ends: the held-out figures beside a baseline, and the next commands."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import numpy as np
from rich.console import Console
from rich.table import Table

from jax_mlm.data.batches import token_counts
from jax_mlm.data.dataset import Dataset
from jax_mlm.evals.heldout import Result, unigram_baseline
from jax_mlm.evals.scoring import Prediction
from jax_mlm.presets import SENTENCE
from jax_mlm.run.log import read_samples


def print_result(data: Dataset, result: Result) -> None:
    """Print the held-out figures beside those of guessing by frequency alone."""
    size = data.vocabulary.size
    ordinary = np.setdiff1d(np.arange(size), data.vocabulary.special)
    loss, accuracy = unigram_baseline(
        token_counts(data.train, size)[ordinary], token_counts(data.valid, size)[ordinary]
    )
    print(f"validation, {int(result.count)} targets at 15 % masks (80/10/10), {len(data.valid)} rows")
    print(f"  this model         loss {result.loss:.4f}   accuracy {result.accuracy:.4f}")
    print(f"  unigram baseline   loss {loss:.4f}   accuracy {accuracy:.4f}")


def print_sentence(predictions: list[Prediction]) -> None:
    """Print the founding sentence's table and what it measures."""
    print_predictions(predictions)
    wrong = sum(not prediction.right for prediction in predictions)
    learned = "learned by heart" if not wrong else f"not learned yet ({wrong} words are wrong: try more --steps)"
    print(f"This is one sentence, {learned}: there is no held-out text, so it measures nothing beyond itself.")
    print("To train on your own text: python -m jax_mlm.train --data FILE")


def print_next(run: Path, own_text: bool) -> None:
    """Print the commands that convert and query the run, with a query from its own text."""
    shown = read_samples(run)[-1:] if own_text else []
    query = next(
        (sample["text"] for line in shown for sample in line["samples"]), SENTENCE.replace("creates", "[MASK]")
    )
    print("next:")
    print(f"  python -m mlm_onnx convert {quote(str(run))} {quote(f'bundles/{run.name}')}")
    print(f"  python -m mlm_onnx fill {quote(f'bundles/{run.name}')} {quote(query)}")


def print_predictions(predictions: list[Prediction]) -> None:
    """Print one line for each position: the hidden word, the top predictions, and right or wrong."""
    table = Table(box=None, pad_edge=False)
    for column in ("position", "hidden word", "first", "second", "third", ""):
        table.add_column(column, justify="right" if column == "position" else "left")
    for position, prediction in enumerate(predictions):
        cells = [f"{word} {100 * probability:.2f} %" for word, probability in prediction.candidates]
        table.add_row(str(position), prediction.hidden, *cells, "right" if prediction.right else "WRONG")
    Console(width=None if Console().is_terminal else 110, highlight=False, markup=False).print(table)
