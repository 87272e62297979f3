"""One optimizer step and one validation step, as pure functions built once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from jax_mlm.config import MaskConfig
from jax_mlm.data import Batch
from jax_mlm.loss import Metrics, masked_metrics
from jax_mlm.masking import Masked, make_mask, rate_at, row_keys
from jax_mlm.model import Inputs, Params
from jax_mlm.optim import Schedule
from jax_mlm.tokenizer import Vocabulary

Forward = Callable[..., Array]
Objective = Callable[..., tuple[Array, Metrics]]
"""(params, fixed params, targets a token, batch, masked rows, dropout keys) → what to minimise, and the metrics.

Both are sums over targets; a mean over tokens becomes one when it is multiplied by the targets a token, a number of the
whole batch.
"""
TrainStep = Callable[["TrainState", Batch, Int[Array, ""]], tuple["TrainState", Metrics]]


class TrainState(NamedTuple):
    """Arrays only: all that a checkpoint has to hold."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.int32(0), params, tx.init(params))


def batch_metrics(
    forward: Forward, params: Params, batch: Batch, masked: Masked, drop_keys: Key[Array, B] | None
) -> Metrics:
    """Loss and accuracy sums of masked rows."""
    inputs = Inputs(masked.tokens, batch.segments, batch.positions)
    logits = forward(params, inputs, masked.at, row_keys=drop_keys)
    return masked_metrics(logits, masked.targets, masked.weights)


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


CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""XLA on CPU without its newer kernel library: 4 to 10 % faster a step, measured with jaxlib 0.10.2."""


def compile_step(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles ahead of time, so that nothing can be compiled again while training."""
    if jax.default_backend() != "cpu":
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=CPU_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # another jaxlib, without that library


def make_eval_step(
    forward: Forward, mask_config: MaskConfig, vocabulary: Vocabulary, length: int, key: Key[Array, ""]
) -> Callable[[Params, Batch], Metrics]:
    """`eval_step(params, batch)`: metrics under masks fixed by the key and each row's number in the data set."""
    mask = make_mask(mask_config, vocabulary, length)
    rate = jnp.float32(mask_config.mask_rate)

    def eval_step(params: Params, batch: Batch) -> Metrics:
        keys = jax.vmap(jax.random.split)(row_keys(key, 0, batch.rows))
        masked = mask(keys[:, 0], batch.tokens, batch.words, rate)
        return batch_metrics(forward, params, batch, masked, None)

    return eval_step
