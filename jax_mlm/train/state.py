"""The state that a run trains: initialised at random, built from given weights, restored, or rolled back."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import jax
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jax_mlm.data.prepare import LINE_EVERY
from jax_mlm.data.word_vectors import word_vectors
from jax_mlm.files import patience
from jax_mlm.model.encoder import Params
from jax_mlm.model.heads import handing_on
from jax_mlm.parallel import hosts
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
    found = restore(checkpoints, _shapes(setup, tx, init_key)) if setup.config.resume else None
    if found is not None:
        return found
    state = _first_state(setup, tx, init_key)
    if setup.config.resume:
        return state, START.copy()
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
    given: Params = setup.start.params if setup.start else _counted(setup)
    shardings = jax.tree.map(lambda shape: shape.sharding, _shapes(setup, tx, init_key))
    return jax.jit(_maker(setup, tx), out_shardings=shardings)(init_key, given)


def _maker(setup: Setup, tx: optax.GradientTransformation) -> Callable[[Key[Array, ""], Params], TrainState]:
    return _make_first(None if setup.start else setup.task.init, tx, setup.config.embeddings == "counted")


@lru_cache
def _make_first(
    init: Callable[[Key[Array, ""]], Params] | None, tx: optax.GradientTransformation, counted: bool
) -> Callable[[Key[Array, ""], Params], TrainState]:
    """Return `first(key, given)`: a state of the given parameters, and of those of `init` where there are none.

    Those that go with a table which is `counted` make use of it.
    """

    def first(key: Key[Array, ""], given: Params) -> TrainState:
        made = {} if init is None else handing_on(init(key)) if counted else init(key)
        return init_state({**made, **given}, tx)

    return first


def _shapes(setup: Setup, tx: optax.GradientTransformation, init_key: Key[Array, ""]) -> TrainState:
    """Return the shape of each array of a state, and where it lives."""
    given = setup.start.params if setup.start else {}
    shapes = jax.eval_shape(_maker(setup, tx), init_key, given)
    place = lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)  # noqa: E731
    return jax.tree.map(place, shapes, laid_out(shapes, setup.mesh))


def _counted(setup: Setup) -> Params:
    """Return the table of --embeddings counted, that of the first host's machine; nothing where it is random."""
    model, config = setup.config.model, setup.config
    if config.embeddings == "random":
        return {}
    with patience("counting which tokens stand near each other", LINE_EVERY):
        table = word_vectors(setup.masked.train, model.vocab_size, model.table_width, model.init_std, config.seed)
    return {"token_table": hosts.first_of(table)}


def laid_out(shapes: TrainState, mesh: Mesh) -> TrainState:
    """Return where each array of a state lives, in its place."""
    moments = state_shardings(shapes.opt_state, mesh, STATE, large=MOMENTS)
    return state_shardings(shapes, mesh, STATE)._replace(opt_state=moments)
