"""One optimizer step, as a pure function built once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key

from jax_mlm.data.batches import Batch
from jax_mlm.model.encoder import Params
from jax_mlm.tasks.masking import row_keys
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.tasks.task import Example, Task
from jax_mlm.train.optim import Schedule

TrainStep = Callable[..., tuple["TrainState", Metrics]]
"""(state, batch, horizon, frozen parameters of the task, if it has any) → the next state, and the batch's metrics."""


class TrainState(NamedTuple):
    """All that a checkpoint has to hold: arrays only."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(jnp.int32(0), params, tx.init(params))


def make_train_step(
    task: Task[Example], tx: optax.GradientTransformation, schedule: Schedule, key: Key[Array, ""], accumulate: int = 1
) -> TrainStep:
    """Return `train_step(state, batch, horizon)` → the next state, and the metrics of this batch before the update.

    The gradient is that of Σloss / Σcount over the whole batch, in whatever number of microbatches it is computed. The
    parameters that a task has frozen are the step's last argument.
    """
    gradient = jax.grad(task.loss, has_aux=True)

    def train_step(
        state: TrainState, batch: Batch, horizon: Int[Array, ""], frozen: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        keys = jax.vmap(jax.random.split)(row_keys(key, state.step, jnp.asarray(batch.rows)))
        parts = (task.prepare(batch, keys[:, 0], state.step, horizon), keys[:, 1])

        def value_and_grad(params: Params, example: Example, drop_keys: Key[Array, " B"]) -> tuple[Metrics, Params]:
            grads, metrics = gradient(params, frozen, example, drop_keys)
            return metrics, grads

        if accumulate == 1:
            metrics, grads = value_and_grad(state.params, *parts)
        else:
            # Microbatch m takes rows m, m + A, m + 2A, …: each device keeps its own rows.
            parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), parts)

            def add(
                total: tuple[Metrics, Params], part: tuple[Example, Key[Array, " B"]]
            ) -> tuple[tuple[Metrics, Params], None]:
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
