"""What a model predicts when each word of a sentence is hidden in turn, as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tokenizers import Tokenizer

from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.model.encoder import Inputs, Params
from jax_mlm.model.heads import Forward

LogProbs = Callable[[Params, Inputs, Int[Array, " B"]], Float[Array, "B V"]]


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
    """Hide each token of the text in turn and return the `top_k` likeliest tokens at its position."""
    encoded = tokenizer.encode(text)
    at, log_probs = mask_each(make_masked_log_probs(forward), params, encoded.ids, vocabulary)

    def named(id: int) -> str:
        return tokenizer.id_to_token(id) or f"id {id}"

    return [
        Prediction(
            encoded.tokens[where], tuple((named(int(i)), float(np.exp(row[i]))) for i in np.argsort(-row)[:top_k])
        )
        for where, row in zip(at, log_probs[:, : vocabulary.size], strict=True)
    ]


def to_host(params: Params) -> Params:
    """Return the parameters on one local device, out of the mesh, for single queries."""
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x), jax.local_devices()[0]), params)


def make_masked_log_probs(forward: Forward) -> LogProbs:
    """Return `log_probs(params, inputs, at)`: log-probabilities [B, V] at one position `at` [B] of each row."""

    @jax.jit
    def log_probs(params: Params, inputs: Inputs, at: Int[Array, " B"]) -> Float[Array, "B V"]:
        return jax.nn.log_softmax(forward(params, inputs, at[:, None])[:, 0], axis=-1)

    return log_probs


def mask_each(
    log_probs: LogProbs, params: Params, ids: Sequence[int], vocabulary: Vocabulary, batch: int = 32
) -> tuple[np.ndarray, Float[np.ndarray, "N V"]]:
    """Hide each ordinary token in turn; return the N positions, and the log-probabilities at each.

    Rows are padded to a multiple of 16, the padding in a segment of its own, so that few shapes are compiled.
    """
    tokens = np.asarray(ids, np.int32)
    at = np.flatnonzero(~np.isin(tokens, vocabulary.special)).astype(np.int32)
    width = -(-len(tokens) // 16) * 16
    row = np.full(width, vocabulary.pad, np.int32)
    row[: len(tokens)] = tokens
    segment = (np.arange(width) < len(tokens)).astype(np.int32)
    out = []
    for start in range(0, len(at), batch):
        mine = at[start : start + batch]
        hidden = np.tile(row, (batch, 1))
        hidden[np.arange(len(mine)), mine] = vocabulary.mask
        where = np.zeros(batch, np.int32)
        where[: len(mine)] = mine
        rows = (hidden, np.tile(segment, (batch, 1)), np.tile(np.arange(width, dtype=np.int32), (batch, 1)))
        out.append(np.asarray(log_probs(params, Inputs(*map(jnp.asarray, rows)), jnp.asarray(where)))[: len(mine)])
    if not out:
        return at, np.zeros((0, 0), np.float32)
    return at, np.concatenate(out)


def pseudo_log_likelihood(
    log_probs: LogProbs, params: Params, ids: Sequence[int], vocabulary: Vocabulary, batch: int = 32
) -> tuple[float, int]:
    """Return Σ ln p(token | all others), each hidden alone (Salazar et al. 2020), and the number of its terms."""
    at, scores = mask_each(log_probs, params, ids, vocabulary, batch)
    if not len(at):
        return 0.0, 0
    return float(scores[np.arange(len(at)), np.asarray(ids)[at]].astype(np.float64).sum()), len(at)
