"""A few training steps of a small model."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jax_mlm.config import MaskConfig, ModelConfig, OptimConfig
from jax_mlm.data.batches import Batch
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.model.heads import init_params
from jax_mlm.tasks.mlm import masked_lm
from jax_mlm.train.optim import make_optimizer, make_schedule
from jax_mlm.train.step import TrainState, init_state, make_train_step

VOCABULARY = Vocabulary(size=64, pad=0, mask=4, unk=1, cls=2, sep=3, special=(0, 1, 2, 3, 4))
CONFIG = ModelConfig(vocab_size=64, width=32, layers=1, heads=4, ff_width=48, max_length=32, dropout=0.1)
LENGTH, BATCH = 32, 16


def uneven_batch(seed: int = 0) -> Batch:
    """Return rows with very different numbers of real tokens: a mean of means would differ from Σ/Σ."""
    rng = np.random.default_rng(seed)
    real = np.arange(LENGTH) < rng.integers(4, LENGTH, (BATCH, 1))
    tokens = np.where(real, rng.integers(5, 64, (BATCH, LENGTH)), 0).astype(np.int32)
    at = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    return Batch(tokens, real.astype(np.int32), at, np.where(real, at, -1), np.arange(BATCH, dtype=np.int32))


def take_steps(accumulate: int, place=lambda x: x, dtype=jnp.float32):
    """Return the parameters after four steps of plain gradient descent: Adam's signs would hide a wrong scale."""
    config = OptimConfig(lr=0.1, clip=0.0, schedule="constant", warmup=0.0, weight_decay=0.0)
    tx = make_optimizer(replace(config, adam_eps=1.0))
    step = jax.jit(
        make_train_step(
            masked_lm(CONFIG, MaskConfig(), VOCABULARY, LENGTH, dtype),
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


def state_shapes(optimizer: str = "adamw") -> TrainState:
    """Return the shapes of the whole state, without arrays."""
    tx = make_optimizer(OptimConfig(optimizer=optimizer))
    return jax.eval_shape(lambda: init_state(init_params(CONFIG, jax.random.key(0)), tx))


def tree_difference(a, b) -> float:
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(a))
    return (
        max(
            float(np.abs(np.asarray(x) - np.asarray(y)).max())
            for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        )
        / scale
    )
