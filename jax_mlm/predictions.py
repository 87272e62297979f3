"""What a model answers when each word of a sentence is hidden in turn, as a table."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from jax_mlm.evaluate import make_masked_log_probs, mask_each
from jax_mlm.model import Params
from jax_mlm.step import Forward
from jax_mlm.tokenizer import Vocabulary


class Prediction(NamedTuple):
    """The answer at one position: the hidden token, and the likeliest ones with their probabilities."""

    hidden: str
    candidates: tuple[tuple[str, float], ...]

    @property
    def right(self) -> bool:
        return self.candidates[0][0] == self.hidden


def predict_each(
    forward: Forward, params: Params, tokenizer: Tokenizer, vocabulary: Vocabulary, text: str, top_k: int = 3
) -> list[Prediction]:
    """Hides each token of the text in turn and reads the `top_k` likeliest ones."""
    encoded = tokenizer.encode(text)
    at, log_probs = mask_each(make_masked_log_probs(forward), params, encoded.ids, vocabulary)
    name = tokenizer.id_to_token
    return [
        Prediction(
            encoded.tokens[where], tuple((name(int(i)), float(np.exp(row[i]))) for i in np.argsort(-row)[:top_k])
        )
        for where, row in zip(at, log_probs[:, : vocabulary.size], strict=True)
    ]


def print_predictions(predictions: list[Prediction]) -> None:
    """Prints one line for each position: the hidden word, the likeliest ones, and right or wrong."""
    table = Table(box=None, pad_edge=False)
    for column in ("position", "hidden word", "first", "second", "third", ""):
        table.add_column(column, justify="right" if column == "position" else "left")
    for position, prediction in enumerate(predictions):
        cells = [f"{word} {100 * probability:.2f} %" for word, probability in prediction.candidates]
        table.add_row(str(position), prediction.hidden, *cells, "right" if prediction.right else "WRONG")
    Console(width=None if Console().is_terminal else 110, highlight=False, markup=False).print(table)


def to_host(params: Params) -> Params:
    """The parameters on one local device, out of the mesh, for single queries."""
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x), jax.local_devices()[0]), params)
