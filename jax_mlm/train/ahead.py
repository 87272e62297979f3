"""The step of a run, lowered ahead of it: from shapes, for devices that need not be here."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jax_mlm.config import TrainConfig
from jax_mlm.data.batches import Batch
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.parallel.attention import first_that_fits
from jax_mlm.parallel.compile import compute_dtype
from jax_mlm.parallel.mesh import by_row, replicated
from jax_mlm.tasks.mlm import masked_lm
from jax_mlm.tasks.task import Task
from jax_mlm.train.optim import Products, make_optimizer, make_schedule
from jax_mlm.train.program import jitted_step
from jax_mlm.train.state import laid_out
from jax_mlm.train.step import init_state


def lowered_step(config: TrainConfig, mesh: Mesh) -> jax.stages.Lowered:
    """Return the step of a run that learns masked tokens, lowered from shapes alone, for the devices of any mesh.

    The configuration is complete: the size of the vocabulary and the type that it computes in are in it.
    """
    length, dtype = config.corpus.length, jnp.dtype(config.dtype)
    vocabulary = Vocabulary(config.model.vocab_size, pad=0, unk=1, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))
    kernels = first_that_fits(config.model, dtype, mesh, config.batch // config.accumulate, length)
    task = masked_lm(config.model, config.mask, vocabulary, length, dtype, kernels)
    tokens = np.zeros((1, length), np.int32)
    return lowered(task, config, mesh, Batch(tokens, tokens, tokens, tokens, np.zeros(1, np.int32)))


def lowered(task: Task[Any], config: TrainConfig, mesh: Mesh, example: Any) -> jax.stages.Lowered:
    """Return the step of a run that learns this task; `example` is a batch of any number of its rows."""
    dtype = compute_dtype(config)
    tx = make_optimizer(config.optim, task.fixed, Products(dtype, mesh))
    shapes = jax.eval_shape(lambda key: init_state(task.init(key), tx), jax.random.key(0))
    shardings = laid_out(shapes, mesh)
    step = jitted_step(task, tx, make_schedule(config.optim), config.accumulate, dtype, mesh, shardings)

    def at(where: NamedSharding, x: Any, *rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*rows, *x.shape[len(rows) :]), x.dtype, sharding=where)

    batch = jax.tree.map(lambda x: at(by_row(mesh), x, config.batch), example)
    state = jax.tree.map(lambda x, where: at(where, x), shapes, shardings)
    whole = partial(at, replicated(mesh))
    key, frozen = jax.tree.map(whole, (jax.random.key_data(jax.random.key(0)), task.frozen))
    return step.lower(key, state, batch, whole(np.int32(0)), frozen, whole(np.float32(0)), whole(np.int32(0)))
