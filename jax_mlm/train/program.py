"""What a run computes, compiled before its clock starts: the step, validation, samples, and the batches they read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Key, UInt32

from jax_mlm.config import ModelConfig
from jax_mlm.cost.flops import document_lengths, layers_pairs, train_flops
from jax_mlm.data.batches import Batch, batch_at, batch_of
from jax_mlm.evals.heldout import Validates, Validator
from jax_mlm.evals.samples import Answer, choose_samples, compile_samples
from jax_mlm.model.encoder import Params
from jax_mlm.model.heads import make_forward
from jax_mlm.model.ops.dense import whole_products
from jax_mlm.parallel.compile import compile_step, compute_dtype
from jax_mlm.parallel.mesh import make_copier, make_placer, replicated
from jax_mlm.parallel.rules import gathered
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.tasks.task import Task
from jax_mlm.train.optim import Schedule
from jax_mlm.train.setup import Setup
from jax_mlm.train.step import TrainState, make_train_step

LONG_SECONDS, LONG_STEPS = 300, 2000
"""The budget, or the number of steps, of the shortest run whose stages are compiled apart."""


class Placed(NamedTuple):
    """A batch on the devices."""

    batch: Batch
    tokens: int
    """Real tokens on all hosts, padding not counted."""
    flops: float
    """Operations of a step on them, those of pairs that attend."""


class Program(NamedTuple):
    """Compiled functions without state."""

    step: Callable[[TrainState, Batch, int, int, float, int], tuple[TrainState, Metrics]]
    """(state, batch, steps done, horizon, limit of the loss, order) → the next state, and the metrics of this batch."""
    finite: Callable[[TrainState], bool]
    """Return whether all parameters and all of the optimizer's state are finite."""
    validate: Validates
    answer: Callable[[Params], tuple[Answer, ...]]
    """Return the model's answers to a few held-out sentences."""
    batch_at: Callable[[int, int], Placed]
    """Return the batch of a step, as a pure function of its number and of the order's."""
    seconds: float
    """The time that compilation took."""
    hlo: Callable[[int, int], str]
    """(steps done, horizon) → the compiled step that comes next, as text."""


def compile_program(
    setup: Setup,
    state: TrainState,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    step_key: Key[Array, ""],
    first: int,
) -> Program:
    """Compile everything that the loop calls; `first` is the number of its first step."""
    config, data, mesh = setup.config, setup.data, setup.mesh
    place, copy, everywhere = make_placer(mesh), make_copier(mesh), replicated(mesh)
    index, count = setup.shard
    frozen, flops = jax.tree.map(copy, setup.task.frozen), make_flops(setup)

    @lru_cache(maxsize=8, typed=True)
    def scalar(value: np.int32 | np.float32) -> Array:
        return copy(value)

    def placed(step: int, order: int) -> Placed:
        batch = batch_at(data.train, step, config.seed + (order << 32), config.batch, (index, count))
        return Placed(place(batch), int((batch.segments > 0).sum()) * count, flops(batch) * count)

    began = time.perf_counter()
    shardings = jax.tree.map(lambda x: x.sharding, state)
    dtype = compute_dtype(config)
    key = copy(np.asarray(jax.random.key_data(step_key)))
    controls = scalar(np.int32(1)), frozen, scalar(np.float32(0)), scalar(np.int32(0))
    example = placed(first, 0).batch

    def compiled(task: Task[Any]) -> jax.stages.Compiled:
        step = jitted_step(task, tx, schedule, config.accumulate, dtype, mesh, shardings)
        return compile_step(step.lower(key, state, example, *controls))

    steps = [(share, compiled(task)) for share, task in stages(setup)]

    def next_step(done: int, horizon: int) -> jax.stages.Compiled:
        return next(each for share, each in reversed(steps) if done >= share * horizon)

    def step(
        state: TrainState, batch: Batch, done: int, horizon: int, limit: float, order: int
    ) -> tuple[TrainState, Metrics]:
        controls = scalar(np.int32(horizon)), frozen, scalar(np.float32(limit)), scalar(np.int32(order))
        return next_step(done, horizon)(key, state, batch, *controls)

    finite = compile_step(jax.jit(all_finite, out_shardings=everywhere).lower(state))
    validate, answer = (setup.measures or masked_measures)(setup, state.params, place)
    return Program(
        step=step,
        finite=lambda state: bool(finite(state)),
        validate=validate,
        answer=answer,
        batch_at=placed,
        seconds=time.perf_counter() - began,
        hlo=lambda done, horizon: next_step(done, horizon).as_text() or "",
    )


def stages(setup: Setup) -> list[tuple[float, Task[Any]]]:
    """Return what is learned from each share of the horizon on: in a long run, tasks with ever fewer targets.

    Each is compiled, so a short run would lose more than it gains.
    """
    long = setup.budget >= LONG_SECONDS if setup.budget else setup.config.steps >= LONG_STEPS
    return [(0.0, setup.task), *(setup.task.later if long else ())]


def jitted_step(
    task: Task[Any],  # its Example type does not matter here
    tx: optax.GradientTransformation,
    schedule: Schedule,
    accumulate: int,
    dtype: DTypeLike,
    mesh: Mesh,
    shardings: TrainState,
) -> jax.stages.Wrapped:
    """Return the step on a mesh, to be lowered; the next state lives where `shardings` says, in the last one's memory.

    Its first argument is the key's data; the others, and those of this function, are described at `make_train_step`.
    `dtype` is the type that the task computes in. Runs of one process that differ by their seeds alone share a program.
    """
    step = _make_step(replace(task, frozen=None), tx, schedule, accumulate, jnp.dtype(dtype), mesh)
    return jax.jit(step, donate_argnums=1, out_shardings=(shardings, replicated(mesh)))


@lru_cache(maxsize=32)  # with each, JAX keeps the programs that were compiled from it
def _make_step(
    task: Task[Any],
    tx: optax.GradientTransformation,
    schedule: Schedule,
    accumulate: int,
    dtype: DTypeLike,
    mesh: Mesh,
) -> Callable[..., tuple[TrainState, Metrics]]:
    def train_step(key: UInt32[Array, " N"], *args: Any) -> tuple[TrainState, Metrics]:  # those of a step, as they are
        with whole_products(dtype):  # the gradients that are written out, too
            key = jax.random.wrap_key_data(key)
            return make_train_step(task, tx, schedule, key, accumulate, partial(gathered, mesh, dtype))(*args)

    return train_step


def masked_measures(
    setup: Setup, params: Params, place: Callable[[Any], Any]
) -> tuple[Validator, Callable[[Params], tuple[Answer, ...]]]:
    """Compile the validation of masked tokens, and the answers to samples."""
    config, data, everywhere = setup.config, setup.masked, replicated(setup.mesh)
    microbatch = config.batch // config.accumulate
    example = place(batch_of(data.valid, np.arange(microbatch // setup.shard[1])))
    examine = compile_step(jax.jit(setup.task.examine, out_shardings=everywhere).lower(params, example))
    forward = make_forward(config.model)
    samples = choose_samples(data.valid, data.tokenizer)
    answer = compile_samples(forward, params, samples, data.valid, data.tokenizer, everywhere)
    return Validator(examine, data.valid, microbatch, config.eval_rows, place, setup.shard), answer


def all_finite(state: TrainState) -> Bool[Array, ""]:
    """Return whether no number of the state is infinite or NaN."""
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]))


def make_flops(setup: Setup) -> Callable[[Any], float]:  # of a batch of its task's kind
    """Return `flops(batch)`: a step's operations for this host's rows.

    A teacher runs forward only, at a third of the cost. Targets are counted as they are on average over the run.
    """
    begins, tasks = zip(*stages(setup), strict=True)
    mean = np.diff([*begins, 1.0]) @ np.array([task.targets for task in tasks])
    targets = setup.config.batch // setup.shard[1] * float(mean)

    def flops(batch: Any) -> float:
        lengths = document_lengths(batch.segments)
        tokens = int(lengths.sum())
        match setup.task.asked:
            case "targets":
                asked = targets
            case "slots":
                asked = int((batch.items >= 0).sum())
            case "tokens":
                asked = tokens

        def flops_of(model: ModelConfig) -> float:
            return train_flops(model, tokens, layers_pairs(model, lengths), targets, asked)

        return flops_of(setup.config.model) + (flops_of(setup.teacher.model) / 3 if setup.teacher else 0)

    return flops
