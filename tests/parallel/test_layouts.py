"""--mesh: every layout of eight simulated devices computes what one device does, and keeps its part of the state."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.eight import on_eight_devices
from support.steps import TUNED, losses

from jax_mlm.errors import UserError
from jax_mlm.parallel.mesh import Layout, read_layout
from jax_mlm.run.checkpoint import load_params

LOSSES = """
import json, sys
from jax_mlm.parallel import rules
from jax_mlm.parallel.mesh import make_mesh
from support.steps import losses
rules.LARGE = 0  # the moments of these small matrices are divided over data too
print(json.dumps([losses(name, int(parts), make_mesh(16, int(parts), mesh))
                  for name, parts, mesh in (case.split(":") for case in sys.argv[1:])]))
"""
FEW = ("muon:2:data=2,fsdp=2,tensor=2", "single:1:data=4,fsdp=2")
ALL = tuple(
    case
    for optimizer in ("adamw", "muon", "lamb")
    for mesh in ("data=8", "data=4,fsdp=2", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2")
    if (case := f"{optimizer}:2:{mesh}") not in FEW
)

TASKS = tuple(f"{task}:2:data=2,fsdp=2,tensor=2" for task in TUNED)
SLOW = tuple(pytest.param(cases, marks=pytest.mark.slow) for cases in (ALL, TASKS))


@pytest.mark.parametrize("cases", [FEW, *SLOW], ids=["few", "all", "tasks"])
def test_every_layout_learns_as_one_device_does(cases: tuple[str, ...]) -> None:
    """Twenty steps on isolated documents, with dropout, in float32: masked tokens, and every task."""
    one = {name: losses(name, 1, None) for name in {case.split(":")[0] for case in cases}}
    for case, found in zip(cases, json.loads(on_eight_devices(LOSSES, *cases)), strict=True):
        np.testing.assert_allclose(found, one[case.split(":")[0]], rtol=1e-5, err_msg=case)
        assert found[-1] < found[0]


COMPILED = """
import json, re, tempfile
from pathlib import Path
import jax, jax.numpy as jnp
from jax_mlm.parallel import rules
from jax_mlm.parallel.mesh import make_mesh, make_placer
from support.steps import jitted_step, packed_batch
out = {"memory": {}}
mesh = make_mesh(16, 2, "data=2,fsdp=4")
step, state = jitted_step("adamw", 2, mesh, dtype=jnp.bfloat16)
lowered = step.lower(state, make_placer(mesh)(packed_batch(0)), jnp.int32(9))
with tempfile.TemporaryDirectory() as folder:  # what CPUs exchange is widened later on
    lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"})
    text = next(Path(folder).glob("*after_spmd-partitioning*")).read_text()
out["gathers"] = re.findall(r" = (\\w+\\[[\\d,]*\\])\\S* all-gather\\(", text)
out["matrices"] = [leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim == 2]
rules.LARGE = 0
for text in ("data=8", "data=2,fsdp=2,tensor=2"):
    mesh = make_mesh(16, 1, text)
    step, state = jitted_step("adamw", 1, mesh)
    batch = make_placer(mesh)(packed_batch(0))
    compiled = step.lower(state, batch, jnp.int32(9)).compile()
    matrices = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    rest = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim < 2)
    out["memory"][text] = {
        "arguments": compiled.memory_analysis().argument_size_in_bytes,
        "params": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params) if leaf.ndim == 2),
        "matrices": sum(leaf.nbytes for leaf in matrices),
        "head": state.params["head"]["kernel"].nbytes,
        "rest": rest + sum(leaf.nbytes for leaf in jax.tree.leaves(batch)) // (mesh.shape["data"] * mesh.shape["fsdp"]),
        "gathers": compiled.as_text().count("all-gather("),
    }
print(json.dumps(out))
"""


@cache
def compiled() -> Any:
    """What steps compiled for eight devices hold and gather, asked for once."""
    return json.loads(on_eight_devices(COMPILED))


def test_memory_falls_as_theory_says() -> None:
    """What a compiled step holds between steps: along data a copy of the parameters, and an eighth of the moments.

    The square matrix of the head has no axis for tensor: twice as much of it and of its two moments is held.
    """
    for text, found in compiled()["memory"].items():
        moments = found["matrices"] - found["params"]
        own = found["params"] if text == "data=8" else found["params"] / 4
        again = found["head"] / 4 + 2 * found["head"] / 8 if "tensor" in text else 0
        expected = own + moments / 8 + again + found["rest"]
        assert found["arguments"] == pytest.approx(expected, rel=0.05, abs=256), text
        assert found["gathers"], text


def test_weights_are_gathered_once_a_step_in_the_type_of_the_products() -> None:
    """In 16 bits, with two microbatches. JAX 0.10 gathers what is laid out for its products as well, on CPUs."""
    matrices = [f"[{rows},{columns}]" for rows, columns in compiled()["matrices"]]
    weights = [found for found in compiled()["gathers"] if found[found.index("[") :] in matrices]
    assert sorted(weights) == sorted("bf16" + matrix for matrix in matrices)


SAVED = """
import json, sys
from pathlib import Path
import jax, numpy as np
from jax_mlm.parallel import rules
from jax_mlm.parallel.mesh import make_mesh
from jax_mlm.run.checkpoint import restore, save_last, saving
from jax_mlm.train.state import laid_out
from support.steps import jitted_step
rules.LARGE = 0
_, state = jitted_step("muon", 1, make_mesh(16, 1, "data=2,fsdp=2,tensor=2"))
np.savez(sys.argv[1] + "/state.npz", *map(np.asarray, jax.tree.leaves(state)))
run = Path(sys.argv[1])
with saving(run) as checkpoints:
    save_last(checkpoints, state, {"step": 0, "elapsed": 0.0, "horizon": 0}, None)
    for text in ("data=8", "fsdp=8"):
        mesh = make_mesh(16, 1, text)
        placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
        like = jax.tree.map(placed, state, laid_out(state, mesh))
        back, _ = restore(checkpoints, like)
        for old, new, where in zip(*map(jax.tree.leaves, (state, back, like)), strict=True):
            assert new.sharding == where.sharding
            assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
print(json.dumps(len(jax.tree.leaves(state))))
"""


def test_a_checkpoint_is_restored_onto_any_other_layout_and_count(tmp_path: Path) -> None:
    leaves = json.loads(on_eight_devices(SAVED, str(tmp_path)))
    with np.load(tmp_path / "state.npz") as saved:
        assert len(saved.files) == leaves
        written = {array.tobytes() for array in saved.values()}
    _, params = load_params(tmp_path)  # here, on one device
    assert all(np.asarray(leaf).tobytes() in written for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data=4,fdsp=2", "no axis 'fdsp' .*did you mean fsdp"),
        ("data=4,data=2", "each axis once"),
        ("data=0", "each axis once"),
        ("data", "each axis once"),
        ("data=²", "each axis once"),
        ("data=4", "is for 4 devices, but there are 8"),
    ],
)
def test_a_layout_that_does_not_fit_is_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_layout(text, 8)
    assert read_layout("", 8) == Layout(8) == read_layout(" data = 8", 8)
    assert str(read_layout("tensor=2,fsdp=4", 8)) == "fsdp=4,tensor=2"
