"""Learning-rate schedules and optax chains.

The schedule is a function of the step and of the horizon (the last step), both traced: a time budget may move the
horizon while it is measured, without recompilation. The chains therefore end before it, at the peak rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import KeyPath
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_mlm.config import OptimConfig
from jax_mlm.errors import unknown_choice
from jax_mlm.model.encoder import Params
from jax_mlm.model.ops.dense import in_rows, turned
from jax_mlm.parallel.rules import spread
from jax_mlm.tasks.task import library_of

Schedule = Callable[[Array | int, Array | int], Array | np.floating]
"""(step, horizon) → fraction of the peak learning rate, from 0 to 1."""


class Products(NamedTuple):
    """How an optimizer multiplies matrices."""

    dtype: DTypeLike = jnp.float32
    mesh: Mesh | None = None
    """The devices; None for one CPU."""


PLAIN = Products()
"""One CPU, in float32."""


@lru_cache
def make_schedule(config: OptimConfig) -> Schedule:
    """Return warm-up, then the shape that the configuration names: the one place to add another."""

    def schedule(step: Array | int, horizon: Array | int) -> Array | np.floating:
        xp = library_of(step)
        end = xp.maximum(xp.asarray(horizon, xp.float32), 1.0)
        now = xp.asarray(step, xp.float32)
        warmup = config.warmup * end
        rising = xp.minimum(1.0, (now + 1.0) / xp.maximum(warmup, 1.0))
        # The last step (horizon − 1) still updates; at the horizon the rate is 0.
        left = xp.clip((end - now) / xp.maximum(end - warmup, 1.0), 0.0, 1.0)
        match config.schedule:
            case "wsd":
                falling = xp.clip((end - now) / xp.maximum(config.decay * end, 1.0), 0.0, 1.0)
            case "cosine":
                falling = 0.5 * (1.0 - xp.cos(xp.pi * left))
            case "linear":
                falling = left
            case "constant":
                falling = xp.ones_like(left)
        return xp.minimum(rising, falling) if config.schedule == "wsd" else rising * falling

    return schedule


def is_matrix(params: Params) -> Params:
    """Return True for weights that decay: matrices and tables, not norms and biases."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def is_hidden_matrix(params: Params) -> Params:
    """Return True for the matrices between hidden states, which Muon orthogonalises; not tables, norms or biases."""

    def hidden(path: KeyPath, x: Array) -> bool:
        return x.ndim == 2 and path[0].key.startswith("layer_")

    return jax.tree_util.tree_map_with_path(hidden, params)


def _adamw(config: OptimConfig, products: Products) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.adam_eps),
        optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
        optax.scale(-config.lr),
    )


def _lamb(config: OptimConfig, products: Products) -> optax.GradientTransformation:
    """Scale Adam's direction in each matrix to the matrix's own length (You et al. 2019): for very large batches."""
    return optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.adam_eps),
        optax.add_decayed_weights(config.weight_decay, mask=is_matrix),
        optax.masked(optax.scale_by_trust_ratio(), is_matrix),
        optax.scale(-config.lr),
    )


def orthogonalised(x: Float[Array, "M N"], dtype: DTypeLike = jnp.float32) -> Float[Array, "M N"]:
    """Return the nearest matrix whose singular values are roughly one, from 0.7 to 1.2 (Jordan et al. 2024).

    Five Newton–Schulz steps, unrolled: a third less time than optax's loop on CPU. `dtype` is that of their products.
    """
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = in_rows((x / (jnp.linalg.norm(x) + 1e-7)).astype(dtype))
    for _ in range(5):
        gram = x @ turned(x)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    x = x.astype(jnp.float32)
    return x.T if tall else x


def _every_orthogonalised(matrices: optax.Updates, products: Products) -> optax.Updates:
    """Return Muon's updates: those of matrices of one shape are computed together, as a stack.

    On many devices, each orthogonalises whole matrices, and equal shares of them: the stack is padded with zeros to a
    multiple of the devices, and divided among them. On one CPU, where stacks are copies, each matrix is on its own.
    """

    def scaled(x: Float[Array, "M N"]) -> Float[Array, "M N"]:
        return orthogonalised(x, products.dtype) * max(1.0, x.shape[1] / x.shape[0]) ** 0.5

    mesh = products.mesh
    if mesh is None or (mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"):
        return jax.tree.map(scaled, matrices)
    divided = partial(spread, mesh) if mesh.size > 1 else lambda stack: stack
    leaves, tree = jax.tree.flatten(matrices)
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, leaf in enumerate(leaves):
        alike[leaf.shape].append(number)
    for shape, numbers in alike.items():
        padding = [jnp.zeros(shape, leaves[numbers[0]].dtype)] * (-len(numbers) % mesh.size)
        stack = divided(jnp.stack([leaves[number] for number in numbers] + padding))
        updates = divided(jax.vmap(scaled)(stack))
        for at, number in enumerate(numbers):
            leaves[number] = updates[at]
    return jax.tree.unflatten(tree, leaves)


def _muon(config: OptimConfig, products: Products) -> optax.GradientTransformation:
    """Orthogonalise the momentum, and scale it by √max(1, out / in) for a matrix [in, out] (Jordan et al. 2024).

    AdamW updates everything that is not a hidden matrix.
    """
    matrices = optax.chain(
        optax.trace(0.95, nesterov=True),
        optax.stateless(lambda u, _: _every_orthogonalised(u, products)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale(-config.muon_lr),
    )
    kinds = lambda params: jax.tree.map(lambda h: "muon" if h else "adamw", is_hidden_matrix(params))  # noqa: E731
    return optax.partition({"muon": matrices, "adamw": _adamw(config, products)}, kinds)


OPTIMIZERS: Mapping[str, Callable[[OptimConfig, Products], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "muon": _muon,
    "lamb": _lamb,
}
"""The choices of --optimizer, and the one place to add another."""


@lru_cache
def make_optimizer(
    config: OptimConfig, fixed: Callable[[Params], Params] | None = None, products: Products = PLAIN
) -> optax.GradientTransformation:
    """Return the chain from a gradient to an update at the peak learning rate; multiply it by the schedule.

    `fixed` returns True for the parameters that stay as they are. Equal arguments give the same chain.
    """
    if config.optimizer not in OPTIMIZERS:
        raise unknown_choice("--optimizer", config.optimizer, OPTIMIZERS)
    chain = OPTIMIZERS[config.optimizer](config, products)
    chain = optax.chain(optax.clip_by_global_norm(config.clip), chain) if config.clip else chain
    if fixed is None:
        return chain
    kinds = lambda params: jax.tree.map(lambda stays: "fixed" if stays else "learned", fixed(params))  # noqa: E731
    return optax.partition({"learned": chain, "fixed": optax.set_to_zero()}, kinds)
