"""Where the arrays of a training state live: a table of logical axes, and rules that map them to a mesh's axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, KeyPath

Tree = TypeVar("Tree")
Rules = Mapping[str, str]
"""Logical axis (a letter of `model/encoder.py`) → axis of the mesh that it is divided over."""
REPLICATED: Rules = {}
"""Every device holds the whole state: pure data parallelism."""

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
}
"""Logical axes of the matrices, by the end of their path; the optimizer's copies of them have the same ends.

Vectors (norms, biases) are small and not listed: every device holds them.
"""


def axes_of(path: KeyPath) -> str:
    """Return the logical axes of the array at this path of a state, one letter each; empty if none are listed."""
    names = [str(key.key) for key in path if isinstance(key, DictKey)]  # parameters are nested dicts
    return AXES.get(names[-1], AXES.get(".".join(names[-2:]), "")) if names else ""


def state_shardings(shapes: Tree, mesh: Mesh, rules: Rules = REPLICATED) -> Tree:
    """Return where each array of a state lives: a tree like `shapes` with a NamedSharding for each leaf.

    A dimension that its mesh axis does not divide, or whose mesh axis an earlier dimension has taken, is not split.

    Args:
        shapes: the state, or `jax.eval_shape` of the function that makes it.
        mesh: has the axes that `rules` name.
        rules: REPLICATED, or logical axis → axis of the mesh.
    """

    def sharding(path: KeyPath, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = axes_of(path)
        spec: list[str | None] = []
        for letter, size in zip(axes, leaf.shape, strict=True) if len(axes) == len(leaf.shape) else ():
            over = rules.get(letter)
            fits = over is not None and over not in spec and size % mesh.shape[over] == 0
            spec.append(over if fits else None)
        return NamedSharding(mesh, PartitionSpec(*spec) if any(spec) else PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, shapes)
