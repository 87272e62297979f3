"""Parameter shapes, known without allocating the parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from jax_mlm.config import ModelConfig, TaskConfig
from jax_mlm.model.encoder import Params
from jax_mlm.model.heads import init_params
from jax_mlm.model.task_heads import init_task_params


def leaves(params: Params) -> dict[tuple[str, ...], Any]:  # arrays, or their ShapeDtypeStructs
    """Return the leaves of the nested dicts by their paths."""
    return {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def expected_shapes(c: ModelConfig, task: TaskConfig | None = None) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return the shape of each of the model's arrays, by path; with the head of a task if one is given.

    Two layers are traced: those after them are as the second.
    """
    key, few = jax.random.key(0), replace(c, layers=c.layer_groups or min(c.layers, 2))
    tree = jax.eval_shape(lambda: init_params(few, key) if task is None else init_task_params(few, task, key))
    shapes = {path: leaf.shape for path, leaf in leaves(tree).items()}
    second = [(path[1:], shape) for path, shape in shapes.items() if path[0] == "layer_1"]
    further = range(2, 0 if c.layer_groups else c.layers)
    shapes |= {(f"layer_{layer}", *rest): shape for layer in further for rest, shape in second}
    return dict(sorted(shapes.items()))


def at_offset(params: Params, c: ModelConfig, offset: int) -> tuple[Params, ModelConfig]:
    """Return the same model with the position table's first used row at `offset`."""
    if c.positions != "learned" or offset == c.position_offset:
        return params, c
    used = np.asarray(params["position_table"])[c.position_offset :]
    moved = np.concatenate([np.zeros((offset, used.shape[1]), used.dtype), used])
    return {**params, "position_table": moved}, replace(c, position_offset=offset)
