"""Masked language modelling: hide tokens, predict them; loss and accuracy at the masked positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from jax_mlm.config import MaskConfig, ModelConfig
from jax_mlm.data.batches import Batch
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.model.encoder import Inputs, Params
from jax_mlm.model.heads import Forward, init_params, make_cast, make_forward
from jax_mlm.model.ops.kernels import OURS, Kernels
from jax_mlm.tasks.masking import Masked, make_mask, rate_at, row_keys, slots
from jax_mlm.tasks.metrics import Metrics, masked_metrics
from jax_mlm.tasks.task import Task

EVAL_MASK = MaskConfig()
"""15 % of the tokens, one by one, 80/10/10: what papers report, whatever masks the run trains with."""
EVAL_SEED = 0
LATER = (1 / 3, 2 / 3)
"""Shares of the horizon from which fewer slots suffice, where the mask rate falls: each is a program of its own."""


class MaskedBatch(NamedTuple):
    """A batch, and the same rows masked."""

    batch: Batch
    masked: Masked

    def inputs(self) -> Inputs:
        return Inputs(self.masked.tokens, jnp.asarray(self.batch.segments), jnp.asarray(self.batch.positions))


def measure(
    forward: Forward, params: Params, example: MaskedBatch, drop_keys: Key[Array, " B"] | None = None
) -> Metrics:
    """Return loss and accuracy sums over the masked positions."""
    logits = forward(params, example.inputs(), example.masked.at, row_keys=drop_keys)
    return masked_metrics(logits, example.masked.targets, example.masked.weights)


def fixed_masks(
    vocabulary: Vocabulary, length: int, config: MaskConfig = EVAL_MASK, seed: int = EVAL_SEED
) -> Callable[[Batch], MaskedBatch]:
    """Return `masked(batch)`: masks fixed by the seed and each row's number in the data set."""
    mask = make_mask(config, vocabulary, length)
    rate, key = jnp.float32(config.mask_rate), jax.random.key(seed)

    def masked(batch: Batch) -> MaskedBatch:
        keys = jax.vmap(jax.random.split)(row_keys(key, 0, jnp.asarray(batch.rows)))
        return MaskedBatch(batch, mask(keys[:, 0], jnp.asarray(batch.tokens), jnp.asarray(batch.words), rate))

    return masked


def make_examine(
    forward: Forward, vocabulary: Vocabulary, length: int, config: MaskConfig = EVAL_MASK, seed: int = EVAL_SEED
) -> Callable[[Params, Batch], Metrics]:
    """Return `examine(params, batch)`: sums under fixed masks."""
    masked = fixed_masks(vocabulary, length, config, seed)
    return lambda params, batch: measure(forward, params, masked(batch))


def shares(config: MaskConfig, length: int) -> list[float]:
    """Return those shares of the horizon, of LATER, from which fewer slots suffice than before."""
    first = {slots(config, length, at): at for at in (*reversed(LATER), 0.0)}
    return sorted(first.values())[1:]


@lru_cache
def masked_lm(
    model: ModelConfig,
    config: MaskConfig,
    vocabulary: Vocabulary,
    length: int,
    dtype: DTypeLike,
    kernels: Kernels = OURS,
    share: float = 0.0,
) -> Task[MaskedBatch]:
    """Return the task of predicting hidden tokens in rows of `length`, learned in `dtype` and examined in float32.

    `kernels` compute the attention while learning. There are as many slots as the masks need once a share of the
    horizon is over. Equal arguments give the same functions, so that a process compiles them once.
    """
    forward = make_forward(model, dtype, kernels)
    mask = make_mask(config, vocabulary, length, share)

    def at_share(at: float) -> Task[MaskedBatch]:
        return masked_lm(model, config, vocabulary, length, dtype, kernels, at)

    def prepare(batch: Batch, keys: Key[Array, " B"], step: Int[Array, ""], horizon: Int[Array, ""]) -> MaskedBatch:
        rate = jnp.asarray(rate_at(config, step, horizon))
        return MaskedBatch(batch, mask(keys, jnp.asarray(batch.tokens), jnp.asarray(batch.words), rate))

    def loss(
        params: Params, frozen: Params | None, example: MaskedBatch, drop_keys: Key[Array, " B"] | None
    ) -> tuple[Float[Array, ""], Metrics]:
        del frozen
        metrics = measure(forward, params, example, drop_keys)
        return metrics.loss_sum, metrics

    return Task(
        init=lambda key: init_params(model, key),
        prepare=prepare,
        loss=loss,
        examine=make_examine(make_forward(model), vocabulary, length),
        scheduled=lambda step, horizon: {"mask_rate": float(rate_at(config, step, horizon))},
        targets=slots(config, length, share),
        cast=make_cast(model, dtype, model.tied),
        later=() if share else tuple((at, at_share(at)) for at in shares(config, length)),
    )
