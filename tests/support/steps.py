"""A few training steps of a small model, on one device or on a mesh of several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_mlm.config import MaskConfig, ModelConfig, OptimConfig, TaskConfig
from jax_mlm.data.batches import Batch
from jax_mlm.data.labelled import LabelledBatch
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.model.heads import init_params
from jax_mlm.model.ops.kernels import OURS, Kernels
from jax_mlm.parallel.mesh import make_placer
from jax_mlm.tasks.classify import labelled
from jax_mlm.tasks.mlm import masked_lm
from jax_mlm.tasks.task import Task
from jax_mlm.train import program
from jax_mlm.train.optim import Products, make_optimizer, make_schedule
from jax_mlm.train.state import laid_out
from jax_mlm.train.step import TrainState, init_state, make_train_step

VOCABULARY = Vocabulary(size=64, pad=0, mask=4, unk=1, cls=2, sep=3, special=(0, 1, 2, 3, 4))
CONFIG = ModelConfig(vocab_size=64, width=32, layers=1, heads=4, ff_width=48, max_length=32, dropout=0.1)
LENGTH, BATCH = 32, 16
TUNED = {
    "single": TaskConfig("classify", ("no", "perhaps", "yes")),
    "several": TaskConfig("classify", ("a", "b"), "multi"),
    "number": TaskConfig("classify", (), "regression"),
    "mean": TaskConfig("classify", ("no", "yes"), pooling="mean"),
    "tag": TaskConfig("tag", ("O", "B-x", "I-x")),
    "answer": TaskConfig("answer", pair=True),
}
"""What a model is fine-tuned for."""


def uneven_batch(seed: int = 0) -> Batch:
    """Return rows with very different numbers of real tokens: a mean of means would differ from Σ/Σ."""
    rng = np.random.default_rng(seed)
    real = np.arange(LENGTH) < rng.integers(4, LENGTH, (BATCH, 1))
    tokens = np.where(real, rng.integers(5, 64, (BATCH, LENGTH)), 0).astype(np.int32)
    at = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    return Batch(tokens, real.astype(np.int32), at, np.where(real, at, -1), np.arange(BATCH, dtype=np.int32))


def take_steps(accumulate: int, place=lambda x: x):
    """Return the parameters after four steps of plain gradient descent: Adam's signs would hide a wrong scale."""
    config = OptimConfig(lr=0.1, clip=0.0, schedule="constant", warmup=0.0, weight_decay=0.0)
    tx = make_optimizer(replace(config, adam_eps=1.0))
    step = jax.jit(
        make_train_step(
            masked_lm(CONFIG, MaskConfig(), VOCABULARY, LENGTH, jnp.float32),
            tx,
            make_schedule(config),
            jax.random.key(7),
            accumulate,
        )
    )
    state = jax.jit(lambda key: init_state(init_params(CONFIG, key), tx))(jax.random.key(0))
    for i in range(4):
        state, metrics = step(state, place(uneven_batch(i)), jnp.int32(100))
    return state.params, metrics, step


def packed_batch(seed: int) -> Batch:
    """Return rows of two documents of uneven lengths, isolated from each other."""
    rng = np.random.default_rng(seed)
    column = np.arange(LENGTH)
    first, both = rng.integers(4, 14, (BATCH, 1)), rng.integers(18, LENGTH + 1, (BATCH, 1))
    segments = np.where(column < both, 1 + (column >= first), 0).astype(np.int32)
    tokens = np.where(segments > 0, rng.integers(5, 64, (BATCH, LENGTH)), 0).astype(np.int32)
    positions = np.where(column < first, column, column - first).astype(np.int32)
    words = np.where(segments > 0, column, -1).astype(np.int32)
    return Batch(tokens, segments, positions, words, np.arange(BATCH, dtype=np.int32))


def labelled_batch(task: TaskConfig, seed: int) -> LabelledBatch:
    """Return such rows with a target for each document, read off its first token."""
    batch = packed_batch(seed)
    second = (batch.segments == 2).argmax(1)
    at = np.stack([np.zeros_like(second), second], 1).astype(np.int32)
    number = np.take_along_axis(batch.tokens, at, 1)
    targets = number % max(task.outputs, 2)
    if task.kind == "answer":
        targets = np.stack([number % 2, 1 + number % 3], -1)
    elif task.problem != "single":
        targets = (number[..., None] % [2, 3] > 0 if task.problem == "multi" else number / 64).astype(np.float32)
    items = np.arange(at.size, dtype=np.int32).reshape(at.shape)
    ones = np.ones(at.shape, np.float32)
    read = batch.tokens, batch.segments, batch.positions, np.zeros_like(batch.tokens)
    return LabelledBatch(*read, at, items, targets, ones, ones, batch.rows)


KEY = jax.random.key_data(jax.random.key(7))
"""The data of a step's key."""


def jitted_step(
    optimizer: str,
    accumulate: int,
    mesh: Mesh | None,
    config: ModelConfig = CONFIG,
    dtype=jnp.float32,
    kernels: Kernels = OURS,
    task: Task[Any] | None = None,
):
    """Return a jitted training step, whose first argument is KEY, and its first state, in parts on a mesh's devices."""
    optim = OptimConfig(optimizer, lr=0.01, muon_lr=0.02, warmup=0.2)
    task = task or masked_lm(config, MaskConfig(), VOCABULARY, LENGTH, dtype, kernels)
    tx = make_optimizer(optim, task.fixed, Products(jnp.float32, mesh))
    schedule = make_schedule(optim)
    first = lambda key: init_state(task.init(key), tx)  # noqa: E731
    if mesh is None:
        whole = lambda key, *args: make_train_step(task, tx, schedule, jax.random.wrap_key_data(key), accumulate)(*args)  # noqa: E731
        return jax.jit(whole), jax.jit(first)(jax.random.key(0))
    laid = laid_out(jax.eval_shape(first, jax.random.key(0)), mesh)
    step = program.jitted_step(task, tx, schedule, accumulate, dtype, mesh, laid)
    return step, jax.jit(first, out_shardings=laid)(jax.random.key(0))


def losses(name: str, accumulate: int, mesh: Mesh | None, steps: int = 20) -> list[float]:
    """Return the loss of each step on isolated documents, with that optimizer, or fine-tuned for that task of TUNED.

    The models of all tasks are BERT's, but for that whose texts are the mean of their tokens; the table of that which
    finds answers is frozen, with its layer.
    """
    tuned = TUNED.get(name)
    if tuned:
        model = replace(CONFIG, family="modernbert" if tuned.pooling == "mean" else "bert")
        task = labelled(model, tuned, jnp.float32, freeze=int(tuned.kind == "answer"))
        step, state = jitted_step("adamw", accumulate, mesh, task=task)
    else:
        step, state = jitted_step(name, accumulate, mesh)
    place = make_placer(mesh) if mesh else lambda batch: batch
    found = []
    for i in range(steps):
        batch = labelled_batch(tuned, i % 4) if tuned else packed_batch(i)
        state, metrics = step(KEY, state, place(batch), jnp.int32(steps))
        found.append(float(metrics.loss_sum) / float(metrics.count))
    return found


def state_shapes(optimizer: str = "adamw") -> TrainState:
    """Return the shapes of the whole state, without arrays."""
    tx = make_optimizer(OptimConfig(optimizer=optimizer))
    return jax.eval_shape(lambda: init_state(init_params(CONFIG, jax.random.key(0)), tx))


def tree_difference(a, b) -> float:
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(a))
    return (
        max(
            float(np.abs(np.asarray(x) - np.asarray(y)).max())
            for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        )
        / scale
    )
