"""Heads on the encoder's body: what turns hidden states into an answer. A new task's head goes here."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from jax_mlm.config import ModelConfig
from jax_mlm.model.encoder import ACTIVATIONS, Dense, Encoder, Inputs, Norm, Params
from jax_mlm.model.ops.dense import add_bias, vocabulary_logits, whole_products
from jax_mlm.model.ops.kernels import OURS, Kernels

HANDED_ON = 0.36
"""Share of the mixed states that attention adds at first; 0.09 and 1 were tried too: see `docs/recipe.md`."""


@runtime_checkable
class Forward(Protocol):
    """`forward(params, inputs, at, token_types=None, row_keys=None)` → logits [B, P, V] in float32; takes numpy."""

    def __call__(
        self,
        params: Params,
        inputs: Inputs,
        at: Int[np.ndarray | Array, "B P"],
        token_types: Int[np.ndarray | Array, "B S"] | None = None,
        row_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B P V"]: ...


class MaskedLM(Encoder):
    """Tokens → logits over the vocabulary at the requested positions."""

    def setup(self) -> None:
        super().setup()
        c = self.config
        self.head = Dense(c, c.table_width, c.head_bias, self.dtype)
        self.head_norm = Norm(c)
        if not c.tied or self.has_variable("params", "decoder"):  # a tied table has a copy once it is cast
            init = nn.initializers.normal(c.init_std)
            self.decoder = self.param("decoder", init, (c.vocab_size, c.table_width), jnp.float32)
        if c.decoder_bias:
            self.decoder_bias = self.param("decoder_bias", nn.initializers.zeros, (c.vocab_size,), jnp.float32)

    def vocabulary(self, x: Float[Array, "B P D"]) -> Float[Array, "B P V"]:
        """Project hidden states to the vocabulary; logits in float32."""
        c = self.config
        B, P, D = x.shape
        x = x.reshape(B * P, D)
        x = self.final_norm(x) if c.norm_first else x
        x = self.head_norm(ACTIVATIONS[c.head_activation or c.activation](self.head(x)))
        table = self.token_table if c.tied and not self.has_variable("params", "decoder") else self.decoder
        logits = vocabulary_logits(x, table.astype(self.dtype))
        return (add_bias(logits, self.decoder_bias) if c.decoder_bias else logits).reshape(B, P, -1)

    def __call__(
        self,
        inputs: Inputs,
        at: Int[Array, "B P"],
        token_types: Int[Array, "B S"] | None = None,
        row_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B P V"]:
        """Return logits at positions `at` only: those of the other positions are never computed."""
        return self.vocabulary(self.hidden(inputs, token_types, row_keys, at))


def init_params(config: ModelConfig, key: Key[Array, ""]) -> Params:
    """Return initial parameters: matrices normal with `init_std`, norm scales 1, biases 0, all float32."""
    row = jnp.zeros((1, 2), jnp.int32)
    return MaskedLM(config).init(key, Inputs(row, row + 1, row), row)["params"]


def handing_on(params: Params) -> Params:
    """Return new weights that begin by naming the tokens which are like those that stand near.

    The head is the identity, so that the tied table names what a state is like, and attention adds a share of the
    states that it mixes as they are.
    """
    found = {**params, "head": {**params["head"], "kernel": jnp.eye(*params["head"]["kernel"].shape)}}
    for name in params:
        if name.startswith("layer_"):
            qkv, out = (params[name]["attention"][of] for of in ("qkv", "out"))
            part = HANDED_ON**0.5 * jnp.eye(len(out["kernel"]))
            values = qkv["kernel"].at[:, -len(part) :].set(part)
            attention = {"qkv": {**qkv, "kernel": values}, "out": {**out, "kernel": part}}
            found[name] = {**params[name], "attention": {**params[name]["attention"], **attention}}
    return found


def make_cast(config: ModelConfig, dtype: DTypeLike, tied: bool) -> Callable[[Params], Params]:
    """Return `cast(params)`: the matrices in the type that they are multiplied in, so that no use of them casts.

    What is looked up, added or a norm's scale stays in float32; a `tied` table, which is both looked up and multiplied,
    gets a copy named `decoder`. Matrices of shared layers stay in float32 too: their gradients are added up in it.
    """
    shared = 0 < config.layer_groups < config.layers

    def one(path: KeyPath, x: Array | np.ndarray) -> Array | np.ndarray:
        first, last = path[0].key, path[-1].key
        return x.astype(dtype) if last in ("kernel", "decoder") and not (shared and first.startswith("layer_")) else x

    def cast(params: Params) -> Params:
        if jnp.dtype(dtype) == jnp.float32:
            return params
        return jax.tree_util.tree_map_with_path(one, {**params, "decoder": params["token_table"]} if tied else params)

    return cast


@lru_cache
def make_forward(config: ModelConfig, dtype: DTypeLike = jnp.float32, kernels: Kernels = OURS) -> Forward:
    """Return the masked language model as a pure function of its parameters, computed in `dtype`.

    Equal arguments give the same function, so that a process compiles it once.
    """
    return pure(MaskedLM(config, dtype, kernels))


def pure(model: Encoder) -> Forward:
    """Return a model with a head as a pure function of its parameters."""
    logits = nn.apply(type(model).__call__, model)

    def forward(
        params: Params,
        inputs: Inputs,
        at: Int[np.ndarray | Array, "B P"],
        token_types: Int[np.ndarray | Array, "B S"] | None = None,
        row_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B P K"]:
        inputs, at, token_types = jax.tree.map(jnp.asarray, (inputs, at, token_types))
        with whole_products(model.dtype):
            return logits({"params": params}, inputs, at, token_types, row_keys)

    return forward
