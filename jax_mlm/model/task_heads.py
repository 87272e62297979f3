"""Heads that answer for a whole text, for each word or for each token, each family's as Hugging Face has it.

    ModernBERT                  the masked LM's own dense layer and norm, then a classifier
    BERT, ALBERT                a pooler with tanh, then a classifier
    RoBERTa, ESM-2              the same under other names
    DistilBERT                  a dense layer with ReLU, then a classifier
Words are tagged, and the first and last tokens of answers found, by a classifier alone, but for ModernBERT, which keeps
its dense layer and norm.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from jax_mlm.config import ModelConfig, TaskConfig
from jax_mlm.model.encoder import ACTIVATIONS, Dense, Encoder, Inputs, Norm, Params, drop_at, dropout
from jax_mlm.model.heads import Forward, pure
from jax_mlm.model.ops.kernels import OURS, Kernels


class TaskHead(Encoder):
    """Tokens → the logits of a task at the requested positions."""

    task: TaskConfig = TaskConfig("classify")

    def setup(self) -> None:
        super().setup()
        c = self.config
        if c.family == "modernbert":
            self.head = Dense(c, c.width, c.head_bias, self.dtype)
            self.head_norm = Norm(c)
        elif self.task.kind == "classify":
            self.pooler = Dense(c, c.width, True, self.dtype)
        self.classifier = Dense(c, self.task.outputs, True, self.dtype)

    def __call__(
        self,
        inputs: Inputs,
        at: Int[Array, "B P"],
        token_types: Int[Array, "B S"] | None = None,
        row_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B P K"]:
        """Return logits in float32 for what begins at the positions `at`: texts or words; tokens, to find answers."""
        c = self.config
        B, P = at.shape
        mean = self.task.kind == "classify" and self.task.pooling == "mean"
        x = self.hidden(inputs, token_types, row_keys, None if mean else at)
        if mean and c.norm_first:  # the mean is that of normalised states
            x = self.final_norm(x.reshape(-1, c.width)).reshape(x.shape)
        x = (mean_of_texts(x, inputs.segments, at) if mean else x).reshape(B * P, c.width)
        if c.norm_first and not mean:
            x = self.final_norm(x)
        if c.family == "modernbert":
            x = self.head_norm(ACTIVATIONS[c.head_activation or c.activation](self.head(x)))
        elif self.task.kind == "classify":
            x = self.pooler(x)
            x = jax.nn.relu(x) if c.family == "distilbert" else jnp.tanh(x)
        x = dropout(x, drop_at(c.dropout, row_keys, 3 * c.layers + 1))
        return self.classifier(x).astype(jnp.float32).reshape(B, P, -1)


def mean_of_texts(
    x: Float[Array, "B S D"], segments: Int[Array, "B S"], at: Int[Array, "B P"]
) -> Float[Array, "B P D"]:
    """Return the mean hidden state of the text that each of the positions lies in."""
    same = segments[:, None, :] == jnp.take_along_axis(segments, at, axis=1)[..., None]
    weights = same / same.sum(-1, keepdims=True)
    return jnp.einsum("BPS,BSD->BPD", weights, x.astype(jnp.float32)).astype(x.dtype)


def init_task_params(config: ModelConfig, task: TaskConfig, key: Key[Array, ""]) -> Params:
    """Return initial parameters of the body and the task's head."""
    row = jnp.zeros((1, 2), jnp.int32)
    return TaskHead(config, task=task).init(key, Inputs(row, row + 1, row), row)["params"]


@lru_cache
def make_task_forward(
    config: ModelConfig, task: TaskConfig, dtype: DTypeLike = jnp.float32, kernels: Kernels = OURS
) -> Forward:
    """Return the model with the task's head as a pure function of its parameters, computed in `dtype`."""
    return pure(TaskHead(config, dtype, kernels, task=task))


class Begun(NamedTuple):
    """Parameters to fine-tune."""

    params: Params
    fresh: tuple[str, ...]
    """Parts that start at random: what was given does not have them, or not in that shape."""


@partial(jax.jit, static_argnums=(0, 1, 2))
def _drawn(
    config: ModelConfig, task: TaskConfig, paths: tuple[tuple[str, ...], ...], key: Key[Array, ""]
) -> list[Array]:
    """Return some of the parameters that are drawn; the others are never computed."""
    every: dict[tuple[str, ...], Any] = flatten_dict(dict(init_task_params(config, task, key)))
    return [every[path] for path in paths]


def begin_with(given: Params, config: ModelConfig, task: TaskConfig, key: Key[Array, ""]) -> Begun:
    """Return the given parameters with what the task's head has besides, started at random."""
    theirs: dict[tuple[str, ...], Any] = flatten_dict(dict(given))
    drawn = jax.eval_shape(partial(init_task_params, config, task), key)
    shapes: dict[tuple[str, ...], Any] = flatten_dict(dict(drawn))
    kept = {path for path, leaf in shapes.items() if path in theirs and theirs[path].shape == leaf.shape}
    fresh = tuple(sorted(shapes.keys() - kept))
    new = dict(zip(fresh, _drawn(config, task, fresh, key), strict=True))
    params = {path: np.asarray(theirs[path] if path in kept else new[path], np.float32) for path in shapes}
    return Begun(unflatten_dict(params), tuple(sorted({path[0] for path in fresh})))
