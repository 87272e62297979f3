"""The state that a run trains: initialised at random, built from given weights, restored, or rolled back."""

from __future__ import annotations

import jax
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jax_mlm.model.encoder import Params
from jax_mlm.parallel.rules import MOMENTS, STATE, state_shardings
from jax_mlm.run.checkpoint import Meta, restore, save_last, settle
from jax_mlm.train.setup import Setup
from jax_mlm.train.step import TrainState, init_state

START: Meta = {"step": 0, "elapsed": 0.0, "horizon": 0}


def init_or_restore(
    setup: Setup, tx: optax.GradientTransformation, init_key: Key[Array, ""], checkpoints: ocp.CheckpointManager
) -> tuple[TrainState, Meta]:
    """Return the newest state of a run to resume, else a first state, laid out as `parallel/rules.py` says.

    The weights that a new run starts from are saved as its step 0, so that --resume never needs their source again.
    """
    state = _first_state(setup, tx, init_key)
    if setup.config.resume:
        return restore(checkpoints, state) or (state, START.copy())
    if _given_weights(setup):
        save_last(checkpoints, state, START, None)
    return state, START.copy()


def roll_back(
    setup: Setup,
    tx: optax.GradientTransformation,
    init_key: Key[Array, ""],
    checkpoints: ocp.CheckpointManager,
    state: TrainState,
    good: int,
) -> tuple[TrainState, Meta]:
    """Return the newest state that was validated, of step `good`, in place of `state`, whose memory is freed.

    Newer checkpoints are deleted. Before the first validation it is the state that the run started from.
    """
    settle(checkpoints)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    found = None
    if good or _given_weights(setup):  # what a stop left was not validated: it is the last resort
        found = restore(checkpoints, like, good) or restore(checkpoints, like)
    back, meta = found or (_first_state(setup, tx, init_key), START.copy())
    for step in checkpoints.all_steps():
        if found is None or step > meta["step"]:
            checkpoints.delete(step)
    return back, meta


def _given_weights(setup: Setup) -> bool:
    return bool(setup.config.init or setup.config.distil.distil)


def _first_state(setup: Setup, tx: optax.GradientTransformation, init_key: Key[Array, ""]) -> TrainState:
    def first(key: Key[Array, ""], params: Params | None) -> TrainState:
        return init_state(setup.task.init(key) if params is None else params, tx)

    given = setup.start.params if setup.start else None
    shardings = laid_out(jax.eval_shape(first, init_key, given), setup.mesh)
    return jax.jit(first, out_shardings=shardings)(init_key, given)


def laid_out(shapes: TrainState, mesh: Mesh) -> TrainState:
    """Return where each array of a state lives, in its place."""
    moments = state_shardings(shapes.opt_state, mesh, STATE, large=MOMENTS)
    return state_shardings(shapes, mesh, STATE)._replace(opt_state=moments)
