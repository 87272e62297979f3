"""The encoder: one Linen module, driven by `ModelConfig`, for the whole BERT family.

Axes, one letter each, everywhere in this project:
    B batch (rows)      S sequence           P masked positions of a row
    D model width       E embedding width    F feed-forward width
    H heads             K head size          V vocabulary
    T tokens of all rows, B·S
    Q queries of a row      N tokens or positions of all rows
Between the embedding and the head, hidden states are [T, D]: XLA multiplies plain matrices up to twice as fast as
stacks of them on CPU, gradients above all.

The families differ only in switches. Post-norm with learned positions is BERT (Devlin et al. 2018), RoBERTa (Liu et al.
2019) and DistilBERT (Sanh et al. 2019); a narrow table and shared layers make ALBERT (Lan et al. 2019); pre-norm with
RoPE (Su et al. 2021), GeGLU (Shazeer 2020) and local windows is ModernBERT (Warner et al. 2024); pre-norm with RoPE,
biases and token dropout is ESM-2 (Lin et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from jax_mlm.config import ModelConfig
from jax_mlm.model.ops.attention import Drop, attend, attention_weights, is_dense, quarter_turn, split_heads
from jax_mlm.model.ops.dense import add_bias, dense, gelu, layer_norm
from jax_mlm.model.ops.kernels import OURS, Kernels

Params = Mapping[str, Any]  # nested dicts of arrays: a recursive type would need a check at each level
ATTENTION = "attention"
"""The collection into which layers sow their attention weights, if it is mutable."""

ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}

EVERY = slice(None)
"""All columns of a matrix."""
KEPT = 1 - 0.15 * 0.8
"""Share of a text's tokens that ESM-2's training did not mask: token dropout scales embeddings to it at any share."""


class Inputs(NamedTuple):
    """What the encoder reads. A row may hold several documents, each with its own segment number."""

    tokens: Int[Array, "B S"]
    segments: Int[Array, "B S"]
    """0 is padding; tokens with equal numbers attend to each other."""
    positions: Int[Array, "B S"]
    """Position of each token in its document, from 0."""


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, computed in float32."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
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
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "N D"], columns: slice = EVERY) -> Float[Array, "N F"]:
        """Return x · kernel + bias; of some columns only, if they are given."""
        init = nn.initializers.normal(self.config.init_std)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        y = dense(x.astype(self.dtype), kernel[:, columns].astype(self.dtype))
        if self.use_bias:
            y = add_bias(y, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)[columns])
        return y


def rows_at(x: Float[Array, "T D"], at: Int[Array, "B P"]) -> Float[Array, "N D"]:
    """Return the hidden states at some positions of each row of the batch."""
    width = x.shape[-1]
    return jnp.take_along_axis(x.reshape(len(at), -1, width), at[..., None], axis=1).reshape(-1, width)


def dropout(x: Array, drop: Drop | None) -> Array:
    """Drop activations; None leaves them as they are."""
    if drop is None:
        return x
    rows = x.reshape(drop.row_keys.shape[0], -1)
    return jnp.where(drop.kept(rows.shape[1:]).reshape(x.shape), x / (1 - drop.rate), 0).astype(x.dtype)


def drop_at(rate: float, row_keys: Key[Array, " B"] | None, site: int) -> Drop | None:
    """Return the dropout of one site; None if nothing is dropped."""
    return None if row_keys is None or rate == 0.0 else Drop(rate, row_keys, site)


def rope_tables(positions: Int[Array, "B S"], head_width: int, theta: float) -> tuple[Array, Array]:
    """Return cosine and sine [B, 1, S, K] of the rotary angles, the same for both halves of a head (Su et al. 2021)."""
    frequency = 1.0 / theta ** (jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    angle = positions[..., None].astype(jnp.float32) * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)[:, None]
    return jax.lax.optimization_barrier((jnp.cos(angle), jnp.sin(angle)))  # else they are computed at each use


def rotate(x: Float[Array, "*B S K"], tables: tuple[Array, Array]) -> Float[Array, "*B S K"]:
    """Apply rotary position embedding, in float32."""
    cos, sin = tables
    return (x.astype(jnp.float32) * cos + quarter_turn(x).astype(jnp.float32) * sin).astype(x.dtype)


def rows_of_heads(x: Float[Array, "B H S K"], at: Int[Array, "B P"]) -> Float[Array, "B H P K"]:
    """Return what stands at some positions of each row."""
    return jnp.take_along_axis(x, at[:, None, :, None], axis=2)


def unmasked_scale(inputs: Inputs, mask: int) -> Float[Array, "B S"]:
    """Return what token dropout multiplies each embedding by: 0 at masks, else KEPT over the text's unmasked share.

    A text is what shares a segment, so that neighbours in a packed row change nothing.
    """
    masked = inputs.tokens == mask
    same = inputs.segments[:, :, None] == inputs.segments[:, None, :]
    length, unmasked = same.sum(-1), (same & ~masked[:, None]).sum(-1)
    return jnp.where(masked, 0, KEPT * length / jnp.maximum(unmasked, 1)).astype(jnp.float32)


class Attention(nn.Module):
    """Bidirectional multi-head self-attention; softmax in float32. With `at`, only what these positions get."""

    config: ModelConfig
    dtype: DTypeLike
    kernels: Kernels

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T D"],
        segments: Int[Array, "B S"],
        window: int | None,
        rope: tuple[Array, Array] | None,
        drop: Drop | None,
        at: Int[Array, "B P"] | None,
    ) -> Float[Array, "N D"]:
        c = self.config
        B, S = segments.shape
        project = Dense(c, 3 * c.width, c.attention_bias, self.dtype, name="qkv")
        apart = at is not None and is_dense(at.shape[1], S, window, drop, self.kernels)
        asked = at if apart else None  # where the queries stand; None is everywhere
        if asked is None:
            q, k, v = split_heads(project(x).reshape(B, S, 3, c.heads, c.head_width))
        else:
            k, v = split_heads(project(x, slice(c.width, None)).reshape(B, S, 2, c.heads, c.head_width))
            (q,) = split_heads(project(rows_at(x, asked), slice(c.width)).reshape(B, -1, 1, c.heads, c.head_width))
        if rope is not None:
            of_queries = rope if asked is None else (rows_of_heads(rope[0], asked), rows_of_heads(rope[1], asked))
            q, k = rotate(q, of_queries), rotate(k, rope)
        q = q * c.head_width**-0.5
        if self.is_mutable_collection(ATTENTION):
            self.sow(ATTENTION, "weights", attention_weights(q, k, segments, window, asked))
        mixed = attend(q, k, v, segments, window, drop, self.kernels, asked).swapaxes(1, 2).reshape(-1, c.width)
        if at is not None and asked is None:
            mixed = rows_at(mixed, at)
        return Dense(c, c.width, c.attention_bias, self.dtype, name="out")(mixed)


class FeedForward(nn.Module):
    """Two dense layers around an activation, gated (GeGLU) or not."""

    config: ModelConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
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
    """One encoder layer; `norms_attention` is False where its input is normalised already."""

    config: ModelConfig
    dtype: DTypeLike
    norms_attention: bool
    kernels: Kernels

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "T D"],
        segments: Int[Array, "B S"],
        window: int | None,
        rope: tuple[Array, Array] | None,
        row_keys: Key[Array, " B"] | None,
        site: int,
        at: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "N D"]:
        """Return the layer's hidden states; with `at`, those at these positions alone."""
        c = self.config
        attention = Attention(c, self.dtype, self.kernels, name="attention")
        feed_forward = FeedForward(c, self.dtype, name="mlp")
        norm_attention = Norm(c, name="attention_norm") if self.norms_attention else None
        norm_mlp = Norm(c, name="mlp_norm")
        in_attention = drop_at(c.attention_dropout, row_keys, site)
        after_attention, after_mlp = (drop_at(c.dropout, row_keys, site + block) for block in (1, 2))
        if c.norm_first:
            h = x if norm_attention is None else norm_attention(x)
            mixed = dropout(attention(h, segments, window, rope, in_attention, at), after_attention)
            x = (x if at is None else rows_at(x, at)) + mixed
            return x + dropout(feed_forward(norm_mlp(x)), after_mlp)
        assert norm_attention is not None
        mixed = dropout(attention(x, segments, window, rope, in_attention, at), after_attention)
        x = norm_attention((x if at is None else rows_at(x, at)) + mixed)
        return norm_mlp(x + dropout(feed_forward(x), after_mlp))


class Encoder(nn.Module):
    """The body: tokens → hidden states. A head (`heads.py`) is a subclass: its parameters sit beside the body's."""

    config: ModelConfig
    dtype: DTypeLike = jnp.float32
    kernels: Kernels = OURS

    def setup(self) -> None:
        c = self.config
        init = nn.initializers.normal(c.init_std)
        self.token_table = self.param("token_table", init, (c.vocab_size, c.table_width), jnp.float32)
        if c.positions == "learned":
            rows = c.max_length + c.position_offset
            self.position_table = self.param("position_table", init, (rows, c.table_width), jnp.float32)
        if c.token_types:
            self.type_table = self.param("type_table", init, (c.token_types, c.table_width), jnp.float32)
        if c.embedding_norm:
            self.embedding_norm = Norm(c)
        if c.embedding_width:
            self.widen = Dense(c, c.width, True, self.dtype)
        distinct = c.layer_groups or c.layers
        self.layer = [
            Layer(c, self.dtype, c.norms_attention(i), self.kernels, name=f"layer_{i}") for i in range(distinct)
        ]
        if c.norm_first:
            self.final_norm = Norm(c)

    def embed(self, inputs: Inputs, token_types: Int[Array, "B S"] | None, row_keys: Array | None) -> Array:
        """Return the embeddings [T, D], normalised where the model does so."""
        c = self.config
        x = self.token_table[inputs.tokens.reshape(-1)]
        if c.token_dropout:
            x = x * unmasked_scale(inputs, c.mask_id).reshape(-1, 1)
        if c.positions == "learned":
            x = x + self.position_table[inputs.positions.reshape(-1) + c.position_offset]
        if c.token_types:
            x = x + (self.type_table[0] if token_types is None else self.type_table[token_types.reshape(-1)])
        x = self.embedding_norm(x) if c.embedding_norm else x
        x = dropout(x.astype(self.dtype), drop_at(c.dropout, row_keys, 0))
        return self.widen(x) if c.embedding_width else x

    def hidden(
        self,
        inputs: Inputs,
        token_types: Int[Array, "B S"] | None = None,
        row_keys: Array | None = None,
        at: Int[Array, "B P"] | None = None,
    ) -> Float[Array, "B N D"]:
        """Return the last layer's hidden states (pre-norm: before the final norm); `row_keys` [B] turns dropout on.

        With `at` they are those at these positions [B, P, D]. Of the others, the last layer computes keys and values
        alone, and attention where that is computed for whole rows.
        """
        c = self.config
        B, S = inputs.tokens.shape
        at = None if at is None else jnp.broadcast_to(at, (B, at.shape[1]))
        last = at if at is not None and at.shape[1] < S else None
        x = self.embed(inputs, token_types, row_keys)
        ropes: dict[float, tuple[Array, Array]] = {}
        for i in range(c.layers):
            window = c.window(i)
            rope = None
            if c.positions == "rope":
                theta = c.rope_theta if window is None else c.rope_theta_local
                rope = ropes.setdefault(theta, rope_tables(inputs.positions, c.head_width, theta))
            shared = i * c.layer_groups // c.layers if c.layer_groups else i
            asked = last if i == c.layers - 1 else None
            x = self.layer[shared](x, inputs.segments, window, rope, row_keys, 3 * i + 1, asked)
        return (x if at is None or last is not None else rows_at(x, at)).reshape(B, -1, c.width)


def make_attention(config: ModelConfig) -> Callable[..., Float[Array, "L B H S S"]]:
    """Return `attention(params, inputs)` → weights of every layer in float32, whose last axis sums to 1."""
    hidden = nn.apply(Encoder.hidden, Encoder(config, jnp.float32), mutable=[ATTENTION])

    def attention(params: Params, inputs: Inputs) -> Array:
        _, sown = hidden({"params": params}, inputs)
        groups = [
            sown[ATTENTION][f"layer_{i}"]["attention"]["weights"] for i in range(config.layer_groups or config.layers)
        ]
        return jnp.stack([weights for group in groups for weights in group])

    return attention
