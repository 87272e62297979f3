"""The JAX model in float32 on the CPU, with exact float32 matrix products; every graph must agree with it."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jax_mlm.config import ModelConfig, TaskConfig
from jax_mlm.model.encoder import Inputs, Params, make_attention
from jax_mlm.model.heads import MaskedLM
from jax_mlm.model.task_heads import make_task_forward

LONGEST = 160
"""Tokens in a text whose attention is compared; more than a local window covers."""


class Reference:
    """One model, which answers the same queries as its graphs; the arguments are named like the graphs' inputs.

    Each kind of answer is compiled on first use, once for all models of one configuration. Short queries are padded to
    one shape, so that they compile only once; the padding changes no answer.
    """

    def __init__(self, config: ModelConfig, params: Params, vocab_size: int, task: TaskConfig | None = None) -> None:
        self.config, self.params, self.task = config, params, task
        self.vocab_size = vocab_size
        """Number of tokens in the tokenizer; the table may have more rows."""
        self._cpu = jax.local_devices(backend="cpu")[0]
        self._placed = jax.device_put(params, self._cpu)
        self._read = partial(_masked, config) if task is None else partial(_tuned, config, task)

    def logits(self, input_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the logits [B, P, V] at the positions [B, P] of rows [B, S]."""
        return self._answer(input_ids, np.ones_like(input_ids), None, positions)[0]

    def embedding(self, input_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the embeddings [B, D]; `positions` only lets JAX compile once for both kinds of answer."""
        return self._answer(input_ids, np.ones_like(input_ids), None, positions)[1]

    def everywhere(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        """Return the logits [B, S, V] at every position of padded rows.

        A model whose positions begin after the padding's own row (RoBERTa) counts them over ids that are not padding.
        """
        positions = np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
        types = token_type_ids if self.config.token_types else None
        return self._answer(input_ids, attention_mask, types, positions, counted=True)[0]

    def of_texts(self, input_ids: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        """Return the logits [B, K] of whole texts."""
        return self._answer(input_ids, np.ones_like(input_ids), self._types(token_type_ids), _first(input_ids))[0][:, 0]

    def of_tokens(self, input_ids: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        """Return the logits [B, S, K] at every position."""
        positions = np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
        return self._answer(input_ids, np.ones_like(input_ids), self._types(token_type_ids), positions)[0]

    def of_padded(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        """Return the logits of padded rows: [B, K] of texts, or [B, S, K]."""
        if self.task is not None and self.task.kind == "classify":
            types = token_type_ids if self.config.token_types else None
            return self._answer(input_ids, attention_mask, types, _first(input_ids), counted=True)[0][:, 0]
        return self.everywhere(input_ids, attention_mask, token_type_ids)

    def attention(self, input_ids: np.ndarray) -> np.ndarray:
        """Return what each token attends to, [layers, B, H, S, S]."""
        b, s = input_ids.shape
        rows, columns = max(b, 2), max(s, min(LONGEST, self.config.max_length))
        with jax.default_device(self._cpu):
            inputs = _inputs(_grown(input_ids, rows, columns), _grown(np.ones_like(input_ids), rows, columns))
            return np.asarray(_attend(self.config, self._placed, inputs))[:, :b, :, :s, :s]

    def _types(self, types: np.ndarray) -> np.ndarray | None:
        """Return the types that the fast graph of the task reads; None where it reads none."""
        return types if self.task is not None and reads_types(self.config, self.task) else None

    def _answer(
        self, ids: np.ndarray, segments: np.ndarray, types: np.ndarray | None, at: np.ndarray, counted: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits at some positions, and the embeddings."""
        (b, s), p = ids.shape, at.shape[1]
        B, S, P = 4, min(64, self.config.max_length), 64
        if b <= B and s <= S and p <= P:
            ids, segments, at = _grown(ids, B, S), _grown(segments, B, S), _grown(at, B, P)
            types = None if types is None else _grown(types, B, S)
        with jax.default_device(self._cpu):
            types = None if types is None else types.astype(np.int32)
            real = ids != self.config.position_offset - 1 if counted and self.config.position_offset else None
            logits, embeddings = self._read(self._placed, _inputs(ids, segments, real), at.astype(np.int32), types)
            return np.asarray(logits)[:b, :p], np.asarray(embeddings)[:b]


@partial(jax.jit, static_argnums=0)
def _attend(config: ModelConfig, params: Params, inputs: Inputs) -> jax.Array:
    return make_attention(config)(params, inputs)


@partial(jax.jit, static_argnums=0)
def _masked(
    config: ModelConfig, params: Params, inputs: Inputs, at: jax.Array, types: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    read = nn.apply(_read, MaskedLM(config))
    return read({"params": params}, inputs, at, types)


@partial(jax.jit, static_argnums=(0, 1))
def _tuned(
    config: ModelConfig, task: TaskConfig, params: Params, inputs: Inputs, at: jax.Array, types: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Return the logits of a task at some positions, and no embeddings."""
    logits = make_task_forward(config, task)(params, inputs, at, types)
    return logits, logits[:, :0]


def reads_types(config: ModelConfig, task: TaskConfig) -> bool:
    """Return whether a task's fast graph reads token types: two texts in a row, which the model tells apart."""
    return config.token_types > 1 and (task.pair or task.kind == "answer")


def _first(ids: np.ndarray) -> np.ndarray:
    return np.zeros((len(ids), 1), np.int64)


def _read(encoder: MaskedLM, inputs: Inputs, at: jax.Array, types: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Return the logits at some positions, and the mean over a row of the last hidden states (after the final norm)."""
    x = encoder.hidden(inputs, types)
    logits = encoder.vocabulary(jnp.take_along_axis(x, at[..., None], axis=1))
    flat = x.reshape(-1, x.shape[-1])
    x = (encoder.final_norm(flat) if encoder.config.norm_first else flat).reshape(x.shape)
    real = (inputs.segments > 0)[..., None]
    return logits, jnp.where(real, x, 0).sum(1) / jnp.maximum(real.sum(1), 1)


def _inputs(ids: np.ndarray, segments: np.ndarray, real: np.ndarray | None = None) -> Inputs:
    """Return the rows, with positions that count every token, or those that are `real` (the others have -1)."""
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape) if real is None else real.cumsum(1) * real - 1
    return Inputs(*(jnp.asarray(array, jnp.int32) for array in (ids, segments, positions)))


def _grown(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Pad the array with zeros at the end of both axes."""
    return np.pad(array, ((0, rows - array.shape[0]), (0, columns - array.shape[1])))
