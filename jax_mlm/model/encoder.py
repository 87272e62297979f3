"""The encoder: one Linen module, driven by `ModelConfig`, for the whole BERT family.

Axes, one letter each, everywhere in this project:
    B batch (rows)      S sequence           P masked positions of a row
    D model width       E embedding width    F feed-forward width
    H heads             K head size          V vocabulary
    T tokens of all rows, B·S
Between the embedding and the head, hidden states are [T, D]: XLA multiplies plain matrices up to twice as fast as
stacks of them on CPU, gradients above all.

The families differ only in switches. Post-norm with learned positions is BERT (Devlin et al. 2018), RoBERTa (Liu et al.
2019) and DistilBERT (Sanh et al. 2019); a narrow table and shared layers make ALBERT (Lan et al. 2019); pre-norm with
RoPE (Su et al. 2021), GeGLU (Shazeer 2020) and local windows is ModernBERT (Warner et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_mlm.config import ModelConfig
from jax_mlm.model.ops.attention import attend, attention_weights
from jax_mlm.model.ops.dense import add_bias, dense, gelu, layer_norm, vocabulary_logits

Params = Mapping[str, Any]
ATTENTION = "attention"
"""The collection in which layers leave their attention, where it is asked for."""

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Inputs(NamedTuple):
    """What the encoder reads. Rows may hold several documents, told apart by their segment."""

    tokens: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    """0 is padding; equal numbers attend to each other."""
    positions: Int[Array, "B S"]
    """Position of each token in its document, from 0."""


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,), jnp.float32)
        if self.config.norm == "rms":
            y = x.astype(jnp.float32)
            y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.config.norm_eps) * scale
            return y.astype(x.dtype)
        y = layer_norm(x, scale, self.config.norm_eps)
        if self.config.norm_bias:
            y = add_bias(y, self.param("bias", nn.initializers.zeros, (width,), jnp.float32))
        return y


class Dense(nn.Module):
    """A linear layer on rows of tokens; parameters in float32, computed in `dtype`."""

    config: ModelConfig
    features: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T F"]:
        init = nn.initializers.normal(self.config.init_std)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        y = dense(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            y = add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32))
        return y


def dropout(x: Array, rate: float, row_keys: Array | None, site: int) -> Array:
    """Drops activations with a key of each row, so that the batch's layout over devices changes nothing."""
    if row_keys is None or rate == 0.0:
        return x
    rows = x.reshape(row_keys.shape[0], -1)
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, site), 1 - rate, rows.shape[1:]))(row_keys)
    return jnp.where(keep.reshape(x.shape), x / (1 - rate), 0).astype(x.dtype)


def rope_tables(positions: Int[Array, "B S"], head_width: int, theta: float) -> tuple[Array, Array]:
    """Cosine and sine [B, 1, S, K] of the rotary angles: the two halves of a head turn together (Su et al. 2021)."""
    frequency = 1.0 / theta ** (jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angle = positions[..., None].astype(jnp.float32) * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)[:, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "B H S K"], tables: tuple[Array, Array]) -> Float[Array, "B H S K"]:
    """Applies rotary position embedding, in float32."""
    cos, sin = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)


def attention_mask(inputs: Inputs, window: int | None) -> Bool[Array, "B 1 S S"]:
    """True where a query may see a key: same document, and at most `window` tokens away."""
    seen = inputs.segments[:, :, None] == inputs.segments[:, None, :]
    if window is not None:
        at = jnp.arange(inputs.tokens.shape[1])
        seen &= jnp.abs(at[:, None] - at[None, :]) <= window
    return seen[:, None]


class Attention(nn.Module):
    """Bidirectional multi-head self-attention; softmax in float32."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T D"],
        mask: Bool[Array, "B 1 S S"],
        rope: tuple[Array, Array] | None,
        row_keys: Array | None,
        site: int,
    ) -> Float[Array, "T D"]:
        c = self.config
        B, _, S, _ = mask.shape
        qkv = Dense(c, 3 * c.width, c.attention_bias, self.dtype, name="qkv")(x)
        heads = qkv.reshape(B, S, 3, c.heads, c.head_width).transpose(2, 0, 3, 1, 4)
        q, k, v = (y[0] for y in jnp.split(heads, 3))
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        keep = None
        if row_keys is not None and c.attention_dropout:
            keep = dropout(jnp.ones((B, c.heads, S, S), x.dtype), c.attention_dropout, row_keys, site)
        q = q * c.head_width**-0.5
        if self.is_mutable_collection(ATTENTION):
            self.sow(ATTENTION, "weights", attention_weights(q, k, mask))
        mixed = attend(q, k, v, mask, keep).swapaxes(1, 2).reshape(B * S, c.width)
        return Dense(c, c.width, c.attention_bias, self.dtype, name="out")(mixed)


class FeedForward(nn.Module):
    """Two dense layers around an activation, gated (GeGLU) or not."""

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        c = self.config
        h = Dense(c, (2 if c.gated else 1) * c.ff_width, c.mlp_bias, self.dtype, name="up")(x)
        activate = ACTIVATIONS[c.activation]
        if c.gated:
            inner, gate = jnp.split(h, 2, axis=-1)
            h = activate(inner) * gate
        else:
            h = activate(h)
        return Dense(c, c.width, c.mlp_bias, self.dtype, name="down")(h)


class Layer(nn.Module):
    """One encoder layer. `first` marks the one whose input is normalised already (pre-norm after an embedding norm)."""

    config: ModelConfig
    dtype: Any
    first: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "T D"], mask: Array, rope: tuple[Array, Array] | None, row_keys: Array | None, site: int
    ) -> Float[Array, "T D"]:
        c = self.config
        attention = Attention(c, self.dtype, name="attention")
        feed_forward = FeedForward(c, self.dtype, name="mlp")
        norm_attention = None if c.norm_first and self.first else Norm(c, name="attention_norm")
        norm_mlp = Norm(c, name="mlp_norm")
        drop = partial(dropout, rate=c.dropout, row_keys=row_keys)
        if c.norm_first:
            h = x if norm_attention is None else norm_attention(x)
            x = x + drop(attention(h, mask, rope, row_keys, site), site=site + 1)
            return x + drop(feed_forward(norm_mlp(x)), site=site + 2)
        assert norm_attention is not None
        x = norm_attention(x + drop(attention(x, mask, rope, row_keys, site), site=site + 1))
        return norm_mlp(x + drop(feed_forward(x), site=site + 2))


class Encoder(nn.Module):
    """Tokens → logits over the vocabulary at the asked positions."""

    config: ModelConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(c.init_std)
        self.token_table = self.param("token_table", init, (c.vocab_size, c.table_width), jnp.float32)
        if c.positions == "learned":
            rows = c.max_length + c.position_offset
            self.position_table = self.param("position_table", init, (rows, c.table_width), jnp.float32)
        if c.token_types:
            self.type_table = self.param("type_table", init, (c.token_types, c.table_width), jnp.float32)
        self.embedding_norm = Norm(c)
        if c.embedding_width:
            self.widen = Dense(c, c.width, True, self.dtype)
        distinct = c.layer_groups or c.layers
        self.layer = [Layer(c, self.dtype, first=i == 0, name=f"layer_{i}") for i in range(distinct)]
        if c.norm_first:
            self.final_norm = Norm(c)
        self.head = Dense(c, c.table_width, c.head_bias, self.dtype)
        self.head_norm = Norm(c)
        if not c.tied:
            self.decoder = self.param("decoder", init, (c.vocab_size, c.table_width), jnp.float32)
        if c.decoder_bias:
            self.decoder_bias = self.param("decoder_bias", nn.initializers.zeros, (c.vocab_size,), jnp.float32)

    def embed(self, inputs: Inputs, token_types: Int[Array, "B S"] | None, row_keys: Array | None) -> Array:
        """Embeddings [T, D], normalised."""
        c = self.config
        x = self.token_table[inputs.tokens.reshape(-1)]
        if c.positions == "learned":
            x = x + self.position_table[inputs.positions.reshape(-1) + c.position_offset]
        if c.token_types:
            x = x + (self.type_table[0] if token_types is None else self.type_table[token_types.reshape(-1)])
        x = dropout(self.embedding_norm(x).astype(self.dtype), c.dropout, row_keys, 0)
        return self.widen(x) if c.embedding_width else x

    def hidden(
        self, inputs: Inputs, token_types: Int[Array, "B S"] | None = None, row_keys: Array | None = None
    ) -> Float[Array, "B S D"]:
        """Hidden states of the last layer (pre-norm: before the final norm); `row_keys` [B] turns dropout on."""
        c = self.config
        x = self.embed(inputs, token_types, row_keys)
        masks = {window: attention_mask(inputs, window) for window in {c.window(i) for i in range(c.layers)}}
        ropes: dict[float, tuple[Array, Array]] = {}
        for i in range(c.layers):
            window = c.window(i)
            rope = None
            if c.positions == "rope":
                theta = c.rope_theta if window is None else c.rope_theta_local
                rope = ropes.setdefault(theta, rope_tables(inputs.positions, c.head_width, theta))
            shared = i * c.layer_groups // c.layers if c.layer_groups else i
            x = self.layer[shared](x, masks[window], rope, row_keys, 3 * i + 1)
        return x.reshape(*inputs.tokens.shape, c.width)

    def vocabulary(self, x: Float[Array, "B P D"]) -> Float[Array, "B P V"]:
        """The head and the vocabulary projection; logits in float32."""
        c = self.config
        B, P, D = x.shape
        x = x.reshape(B * P, D)
        x = self.final_norm(x) if c.norm_first else x
        x = self.head_norm(ACTIVATIONS[c.head_activation or c.activation](self.head(x)))
        table = (self.token_table if c.tied else self.decoder).astype(self.dtype)
        logits = vocabulary_logits(x, table)
        return (add_bias(logits, self.decoder_bias) if c.decoder_bias else logits).reshape(B, P, -1)

    def __call__(
        self,
        inputs: Inputs,
        at: Int[Array, "B P"],
        token_types: Int[Array, "B S"] | None = None,
        row_keys: Array | None = None,
    ) -> Float[Array, "B P V"]:
        """Logits at positions `at` only: the projection of the other positions is never computed."""
        x = self.hidden(inputs, token_types, row_keys)
        return self.vocabulary(jnp.take_along_axis(x, at[..., None], axis=1))


def init_params(config: ModelConfig, key: Array) -> Params:
    """Initial parameters: matrices normal with `init_std`, norm scales 1, biases 0, all float32."""
    row = jnp.zeros((1, 2), jnp.int32)
    return Encoder(config).init(key, Inputs(row, row + 1, row), row)["params"]


def make_forward(config: ModelConfig, dtype: Any = jnp.float32) -> Callable[..., Float[Array, "B P V"]]:
    """`forward(params, inputs, at, token_types=None, row_keys=None)` → logits [B, P, V] in float32."""
    encoder = Encoder(config, dtype)

    def forward(params: Params, inputs: Inputs, at: Array, token_types: Any = None, row_keys: Any = None) -> Array:
        return encoder.apply({"params": params}, inputs, at, token_types, row_keys)

    return forward


def make_attention(config: ModelConfig) -> Callable[..., Float[Array, "L B H S S"]]:
    """`attention(params, inputs)` → what each token attends to in every layer, in float32; the last axis sums to 1."""
    encoder = Encoder(config, jnp.float32)

    def attention(params: Params, inputs: Inputs) -> Array:
        _, left = encoder.apply({"params": params}, inputs, method=Encoder.hidden, mutable=[ATTENTION])
        groups = [
            left[ATTENTION][f"layer_{i}"]["attention"]["weights"] for i in range(config.layer_groups or config.layers)
        ]
        return jnp.stack([weights for group in groups for weights in group])

    return attention


Forward = Callable[..., Array]
