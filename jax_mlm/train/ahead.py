"""The step of a run, lowered ahead of it: from shapes, for devices that need not be here."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jax_mlm.config import TrainConfig
from jax_mlm.data.batches import Batch
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.parallel.attention import first_that_fits
from jax_mlm.parallel.mesh import by_row, replicated
from jax_mlm.tasks.mlm import masked_lm
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
    tx = make_optimizer(config.optim, task.fixed, Products(dtype, mesh))
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    shapes = jax.eval_shape(lambda key: init_state(task.init(key), tx), init_key)
    shardings = laid_out(shapes, mesh)
    step = jitted_step(task, tx, make_schedule(config.optim), step_key, config.accumulate, dtype, mesh, shardings)
    tokens: Any = jax.ShapeDtypeStruct((config.batch, length), jnp.int32, sharding=by_row(mesh))
    rows: Any = jax.ShapeDtypeStruct((config.batch,), jnp.int32, sharding=by_row(mesh))
    batch = Batch(tokens, segments=tokens, positions=tokens, words=tokens, rows=rows)
    state = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings)
    whole = partial(jax.ShapeDtypeStruct, (), sharding=replicated(mesh))
    return step.lower(state, batch, whole(jnp.int32), None, whole(jnp.float32), whole(jnp.int32))
