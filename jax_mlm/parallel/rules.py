"""Where the arrays of a training state live: a table of logical axes, and rules that map them to a mesh's axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, KeyPath
from jax.typing import DTypeLike
from jaxtyping import Array

Tree = TypeVar("Tree")
Rules = Mapping[str, tuple[str, ...]]
"""Logical axis (a letter of `model/encoder.py`) → axes of the mesh that it is divided over."""
PRODUCTS: Rules = {"V": ("tensor",), "H": ("tensor",), "F": ("tensor",)}
"""Where the parameters are while they are multiplied: what fsdp divides is gathered."""
STATE: Rules = {**PRODUCTS, "D": ("fsdp",), "E": ("fsdp",)}
"""Every matrix is divided over fsdp along the hidden state, and over tensor along its other axis."""
MOMENTS: Rules = {**PRODUCTS, "D": ("fsdp", "data"), "E": ("fsdp", "data")}
"""Where the optimizer's copies of large matrices are: each is updated by one of the devices of `data` (ZeRO, stage 1;
Rajbhandari et al. 2019), which costs no more traffic than a sum on all of them does."""
LARGE = 1 << 20
"""Entries of a matrix from which its moments are divided over `data`: for less, the exchanges take longer than they
save."""

AXES: Mapping[str, str] = {
    "token_table": "VE",
    "position_table": "SE",
    "type_table": "-E",
    "decoder": "VE",
    "widen.kernel": "ED",
    "qkv.kernel": "DH",
    "out.kernel": "HD",
    "up.kernel": "DF",
    "down.kernel": "FD",
    "head.kernel": "DE",
    "pooler.kernel": "DE",
    "classifier.kernel": "D-",
}
"""Logical axes of the matrices, by the end of their path; the optimizer's copies of them have the same ends.

Vectors (norms, biases) are small and not listed: every device holds them.
"""


def axes_of(path: KeyPath) -> str:
    """Return the logical axes of the array at this path of a state, one letter each; empty if none are listed."""
    names = [str(key.key) for key in path if isinstance(key, DictKey)]  # parameters are nested dicts
    return AXES.get(names[-1], AXES.get(".".join(names[-2:]), "")) if names else ""


def state_shardings(shapes: Tree, mesh: Mesh, rules: Rules, large: Rules | None = None) -> Tree:
    """Return where each array of a state lives: a tree like `shapes` with a NamedSharding for each leaf.

    A mesh axis that does not divide the dimension, or that an earlier dimension has taken, is left out.

    Args:
        shapes: the state, or `jax.eval_shape` of the function that makes it.
        mesh: an axis that it does not have, or of one device, divides nothing.
        rules: logical axis → axes of the mesh.
        large: other rules for arrays of LARGE entries or more.
    """

    def sharding(path: KeyPath, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes, taken = axes_of(path), set[str]()
        chosen = rules if large is None or math.prod(leaf.shape) < LARGE else large
        spec: list[str | tuple[str, ...] | None] = []
        for letter, size in zip(axes, leaf.shape, strict=True) if len(axes) == len(leaf.shape) else ():
            over: list[str] = []
            for axis in chosen.get(letter, ()):
                parts = math.prod(mesh.shape[each] for each in over)
                if mesh.shape.get(axis, 1) > 1 and axis not in taken and size % (parts * mesh.shape[axis]) == 0:
                    over.append(axis)
                    taken.add(axis)
            spec.append(tuple(over) if len(over) > 1 else over[0] if over else None)
        return NamedSharding(mesh, PartitionSpec(*spec) if any(spec) else PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def gathered(mesh: Mesh, dtype: DTypeLike, tree: Tree) -> Tree:
    """Return the parameters as products need them; their gradient is divided again as the state is.

    Each device then adds up only its own part of a gradient. What is divided is sent in `dtype`, the type of the
    products: a table that is looked up in float32 comes in its precision. Without fsdp, the parameters as they are.
    """
    if mesh.shape["fsdp"] == 1:
        return tree
    constrained = jax.lax.with_sharding_constraint

    def one(x: Array, whole: NamedSharding, part: NamedSharding) -> Array:
        def sent(x: Array) -> Array:
            own = x.astype(dtype if part.spec != whole.spec else x.dtype)
            return constrained(constrained(own, part), whole).astype(x.dtype)  # without the first, it is sent uncast

        gather = jax.custom_vjp(sent)
        gather.defvjp(lambda x: (sent(x), None), lambda _, g: (constrained(g, part),))
        return gather(x)

    return jax.tree.map(one, tree, *(state_shardings(tree, mesh, rules) for rules in (PRODUCTS, STATE)))


def spread(mesh: Mesh, stack: Array) -> Array:
    """Return a stack of arrays with each whole on one device; their number is a multiple of that of the devices."""
    return jax.lax.with_sharding_constraint(stack, NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names))))
