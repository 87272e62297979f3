"""How fast a device is at what training does, before a run is set up: a few seconds of a small step, or of products."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jax_mlm.config import TrainConfig
from jax_mlm.cost.flops import layers_pairs, train_flops
from jax_mlm.data.batches import Batch
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.parallel.compile import compile_step
from jax_mlm.presets import PRESETS
from jax_mlm.tasks.mlm import masked_lm
from jax_mlm.train.optim import Products, make_optimizer, make_schedule
from jax_mlm.train.step import init_state, make_train_step

ENTRIES = 1024
"""Tokens that the small step knows; its table is not what takes the time."""


def flops_of_token(run: TrainConfig) -> float:
    """Count the operations of a training step for each token, in rows that are one document.

    The size of the vocabulary is known.
    """
    pairs = layers_pairs(run.model, np.array([run.corpus.length])) / run.corpus.length
    return train_flops(run.model, 1, pairs, run.mask.mask_rate)


def flops_of_a_step(dtype: DTypeLike) -> float:
    """Return the operations a second of a small training step in a type: that of `micro` with a single layer."""
    preset = PRESETS["micro"]
    run = replace(preset, model=replace(preset.model, layers=1, vocab_size=ENTRIES))
    length, tx = run.corpus.length, make_optimizer(run.optim, None, Products(dtype))
    vocabulary = Vocabulary(ENTRIES, pad=0, unk=1, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))
    task, key = masked_lm(run.model, run.mask, vocabulary, length, dtype), jax.random.key(0)
    tokens = np.full((run.batch, length), len(vocabulary.special), np.int32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    batch = Batch(tokens, np.ones_like(tokens), places, places, np.arange(run.batch, dtype=np.int32))
    state = jax.jit(lambda: init_state(task.init(key), tx))()
    jitted = jax.jit(make_train_step(task, tx, make_schedule(run.optim), key), donate_argnums=0)
    step = compile_step(jitted.lower(state, batch, np.int32(1000)))

    def once() -> None:
        nonlocal state
        state, metrics = step(state, batch, np.int32(1000))
        jax.block_until_ready(metrics)

    return flops_of_token(run) * tokens.size / least_seconds(once)


def flops_of_products(dtype: DTypeLike) -> float:
    """Return the operations a second of matrix products in a type, on one device."""
    left, right = jnp.ones((8192, 4096), dtype), jnp.ones((4096, 4096), dtype)
    product = compile_step(jax.jit(jnp.matmul).lower(left, right))
    return 2 * 8192 * 4096**2 / least_seconds(lambda: jax.block_until_ready(product(left, right)))


def least_seconds(run: Callable[[], object]) -> float:
    """Return the time of the fastest of nine runs: what the machine can do undisturbed."""
    seconds = []
    for _ in range(9):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
