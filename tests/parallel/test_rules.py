"""State shardings from rules: data, without a device of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from support.eight import on_eight_devices
from support.models import CONFIGS
from support.steps import TUNED, state_shapes

from jax_mlm.model.heads import init_params
from jax_mlm.model.task_heads import init_task_params
from jax_mlm.parallel.rules import AXES, STATE, axes_of, state_shardings


@pytest.mark.parametrize(
    ("name", "task"), [*((name, None) for name in CONFIGS), ("bert", "single"), ("modernbert", "tag")]
)
def test_every_matrix_of_every_family_and_head_has_its_axes(name: str, task: str | None) -> None:
    config = replace(CONFIGS[name], layers=max(1, CONFIGS[name].layer_groups))
    first = partial(init_task_params, config, TUNED[task]) if task else partial(init_params, config)
    params = jax.eval_shape(first, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert len(axes_of(path)) == (leaf.ndim if leaf.ndim > 1 else 0), jax.tree_util.keystr(path)


def test_alone_a_device_holds_everything() -> None:
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    assert {s.spec for s in jax.tree.leaves(state_shardings(state_shapes(), mesh, STATE))} == {PartitionSpec()}
    assert set("".join(AXES.values())) <= set("VESDHF-")


EIGHT = """
import json
import jax, numpy as np
from jax.sharding import Mesh
from jax_mlm.parallel.rules import state_shardings
from support.steps import state_shapes
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"))
out = {}
for optimizer in ("adamw", "muon"):
    laid = state_shardings(state_shapes(optimizer), mesh, {"D": ("fsdp",), "V": ("fsdp",)})
    out[optimizer] = {jax.tree_util.keystr(p): [*s.spec] for p, s in jax.tree_util.tree_leaves_with_path(laid)}
print(json.dumps(out))
"""


def test_rules_divide_the_matrices_and_the_optimizer_s_copies_alike() -> None:
    printed = on_eight_devices(EIGHT)
    for laid in json.loads(printed).values():
        tables = {name: spec for name, spec in laid.items() if name.endswith("['token_table']")}
        assert len(tables) >= 3, "the parameter and the optimizer's moments"
        assert all(spec == ["fsdp", None] for spec in tables.values())
        assert laid[".params['layer_0']['mlp']['down']['kernel']"] == [None, "fsdp"]
        assert laid[".params['layer_0']['mlp_norm']['scale']"] == []


def test_an_axis_that_does_not_divide_stays_whole() -> None:
    class Pretended:
        """A mesh of three devices: only its shape is asked for."""

        shape = {"fsdp": 3}  # noqa: RUF012

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax_mlm.parallel.rules.NamedSharding", lambda mesh, spec: spec)
        like = {"token_table": jax.ShapeDtypeStruct((64, 33), jnp.float32)}
        assert state_shardings(like, Pretended(), {"V": ("fsdp",), "E": ("fsdp",)}) == {
            "token_table": PartitionSpec(None, "fsdp")
        }
