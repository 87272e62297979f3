"""One optimizer step, as a pure function built once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jax_mlm.data.batches import Batch
from jax_mlm.model.encoder import Params
from jax_mlm.tasks.masking import row_keys
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.tasks.task import Example, Task
from jax_mlm.train.optim import Schedule

TrainStep = Callable[..., tuple["TrainState", Metrics]]
"""(state, batch, horizon, frozen parameters of the task, limit of the loss, number of the order of the data) → the next
state, and the batch's metrics; the last three have defaults."""
STEPS_OF_AN_ORDER = 1 << 30
"""The keys of another order of the data are those of steps that no run reaches."""


class TrainState(NamedTuple):
    """All that a checkpoint has to hold: arrays only."""

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(jnp.int32(0), params, tx.init(params))


def make_train_step(
    task: Task[Example],
    tx: optax.GradientTransformation,
    schedule: Schedule,
    key: Key[Array, ""],
    accumulate: int = 1,
    gather: Callable[[Params], Params] = lambda params: params,
) -> TrainStep:
    """Return `train_step(state, batch, horizon)` → the next state, and the metrics of this batch before the update.

    The gradient is that of Σloss / Σcount over the whole batch, in whatever number of microbatches it is computed.
    `frozen` are the parameters that the task does not train. Where the objective or the gradient is not finite, or the
    mean loss is not below `limit`, only the step's number advances. `order` chooses other masks for the same steps.
    `gather` returns the parameters as products need them, where a device keeps only a part of each. They are cast and
    gathered once, and each microbatch's gradient is that of the parameters in float32, where the state has them.
    """
    value_and_gradient = jax.value_and_grad(task.loss, has_aux=True)

    def train_step(
        state: TrainState,
        batch: Batch,
        horizon: Int[Array, ""],
        frozen: Params | None = None,
        limit: Float[Array, ""] | float = math.inf,
        order: Int[Array, ""] | int = 0,
    ) -> tuple[TrainState, Metrics]:
        key_step = state.step + order * STEPS_OF_AN_ORDER
        keys = jax.vmap(jax.random.split)(row_keys(key, key_step, jnp.asarray(batch.rows)))
        parts = (task.prepare(batch, keys[:, 0], state.step, horizon), keys[:, 1])

        ready, gradient_of_state = jax.vjp(lambda params: task.cast(gather(params)), state.params)

        def evaluate(example: Example, drop_keys: Key[Array, " B"]) -> tuple[Array, Metrics, Params]:
            (objective, metrics), grads = value_and_gradient(ready, frozen, example, drop_keys)
            return objective, metrics, *gradient_of_state(grads)

        if accumulate == 1:
            objective, metrics, grads = evaluate(*parts)
        else:
            # Microbatch m takes rows m, m + A, m + 2A, …: each device keeps its own rows.
            parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), parts)

            def add(
                total: tuple[Array, Metrics, Params], part: tuple[Example, Key[Array, " B"]]
            ) -> tuple[tuple[Array, Metrics, Params], None]:
                return jax.tree.map(jnp.add, total, evaluate(*part)), None

            first = jax.tree.map(lambda x: x[0], parts)
            shapes = jax.eval_shape(evaluate, *first)
            zero = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
            (objective, metrics, grads), _ = jax.lax.scan(add, zero, parts)
        count = jnp.where(metrics.count > 0, metrics.count, 1.0)  # of weighted labels it may be below 1
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        factor = schedule(state.step, horizon)
        params = jax.tree.map(lambda p, u: p + factor * u, state.params, updates)
        # The norm is the one that the gradient is clipped by: it is computed once. A NaN is not below the limit.
        finite = jnp.isfinite(objective) & jnp.isfinite(optax.tree.norm(grads))
        sound = finite & (metrics.loss_sum < limit * count)
        kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), (params, opt_state), state[1:])
        return TrainState(state.step + 1, *kept), metrics._replace(skipped=1.0 - sound)

    return train_step
