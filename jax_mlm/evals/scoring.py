"""What a model predicts when each word of a sentence is hidden in turn, as a table."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.model.encoder import Inputs, Params
from jax_mlm.model.heads import Forward


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
    """Hide each ordinary token of the text in turn and return the `top_k` likeliest tokens at its position."""
    encoded = tokenizer.encode(text)
    ids = np.asarray(encoded.ids, np.int32)
    at = np.flatnonzero(~np.isin(ids, vocabulary.special)).astype(np.int32)
    tokens = np.tile(ids, (len(at), 1))
    tokens[np.arange(len(at)), at] = vocabulary.mask
    positions = np.broadcast_to(np.arange(len(ids), dtype=np.int32), tokens.shape)
    inputs = Inputs(*map(jnp.asarray, (tokens, np.ones_like(tokens), positions)))
    logits = jax.jit(forward)(params, inputs, at[:, None])[:, 0]
    probabilities = np.asarray(jax.nn.softmax(logits, axis=-1))[:, : vocabulary.size]

    def named(id: int) -> str:
        return tokenizer.id_to_token(id) or f"id {id}"

    return [
        Prediction(encoded.tokens[where], tuple((named(int(i)), float(row[i])) for i in np.argsort(-row)[:top_k]))
        for where, row in zip(at, probabilities, strict=True)
    ]


def to_host(params: Params) -> Params:
    """Return the parameters on one local device, out of the mesh, for single queries."""
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x), jax.local_devices()[0]), params)
