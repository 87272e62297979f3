"""One optimizer step and one validation step, as pure functions built once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from jax_mlm.config import MaskConfig
from jax_mlm.data.batches import Batch
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.model.encoder import Forward, Params
from jax_mlm.tasks.masking import make_mask, rate_at, row_keys
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.tasks.mlm import Objective, batch_metrics
from jax_mlm.train.optim import Schedule

TrainStep = Callable[["TrainState", Batch, Int[Array, ""]], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """Arrays only: all that a checkpoint has to hold."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), params, tx.init(params))


def make_train_step(
    forward: Forward,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    mask_config: MaskConfig,
    vocabulary: Vocabulary,
    length: int,
    key: Key[Array, ""],
    accumulate: int = 1,
    objective: Objective | None = None,
) -> TrainStep:
    """`train_step(state, batch, horizon)` → the next state, and the metrics of this batch before the update.

    The gradient is that of Σloss / Σcount over the whole batch, in whatever number of microbatches it is computed. An
    `objective` takes the loss's place; parameters that it needs and that do not learn are the step's last argument.
    """
    mask = make_mask(mask_config, vocabulary, length)

    def masked_lm(params: Params, _: Any, __: Array, *part: Any) -> tuple[Array, Metrics]:
        metrics = batch_metrics(forward, params, *part)
        return metrics.loss_sum, metrics

    gradient = jax.grad(objective or masked_lm, has_aux=True)

    def train_step(
        state: TrainState, batch: Batch, horizon: Int[Array, ""], fixed: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        keys = jax.vmap(jax.random.split)(row_keys(key, state.step, batch.rows))
        masked = mask(keys[:, 0], batch.tokens, batch.words, rate_at(mask_config, state.step, horizon))
        per_token = masked.weights.sum() / jnp.maximum((batch.segments > 0).sum(), 1)

        def value_and_grad(params: Params, *part: Any) -> tuple[Metrics, Params]:
            grads, metrics = gradient(params, fixed, per_token, *part)
            return metrics, grads

        parts = (batch, masked, keys[:, 1])
        if accumulate == 1:
            metrics, grads = value_and_grad(state.params, *parts)
        else:
            # Microbatch m takes rows m, m + A, m + 2A, …: each device keeps its own rows.
            parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), parts)

            def add(total: tuple[Metrics, Params], part: Any) -> tuple[tuple[Metrics, Params], None]:
                return jax.tree.map(jnp.add, total, value_and_grad(state.params, *part)), None

            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(value_and_grad, state.params, *first)
            zero = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
            (metrics, grads), _ = jax.lax.scan(add, zero, parts)
        grads = jax.tree.map(lambda g: g / jnp.maximum(metrics.count, 1.0), grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        factor = schedule(state.step, horizon)
        params = jax.tree.map(lambda p, u: p + factor * u, state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step
