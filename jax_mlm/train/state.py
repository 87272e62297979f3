"""The state that a run trains: initialised at random, built from given weights, or restored."""

from __future__ import annotations

import jax
import optax
import orbax.checkpoint as ocp
from jaxtyping import Array, Key

from jax_mlm.model.encoder import Params
from jax_mlm.parallel.rules import state_shardings
from jax_mlm.run.checkpoint import Meta, restore, save_last
from jax_mlm.train.setup import Setup
from jax_mlm.train.step import TrainState, init_state


def init_or_restore(
    setup: Setup, tx: optax.GradientTransformation, init_key: Key[Array, ""], checkpoints: ocp.CheckpointManager
) -> tuple[TrainState, Meta]:
    """Return the newest state of a run to resume, else a first state, sharded by the setup's rules.

    The weights that a new run starts from are saved as its step 0, so that --resume never needs their source again.
    """

    def first_state(key: Key[Array, ""], params: Params | None) -> TrainState:
        return init_state(setup.task.init(key) if params is None else params, tx)

    given = setup.start.params if setup.start else None
    shardings = state_shardings(jax.eval_shape(first_state, init_key, given), setup.mesh, setup.rules)
    state = jax.jit(first_state, out_shardings=shardings)(init_key, given)
    meta: Meta = {"step": 0, "elapsed": 0.0, "horizon": 0}
    if setup.config.resume:
        return restore(checkpoints, state) or (state, meta)
    if setup.config.init or setup.config.distil.distil:
        save_last(checkpoints, state, meta, None)
    return state, meta
