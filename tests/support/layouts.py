"""What eight devices compute, hold and save on several layouts: for a process of its own (`on_eight_devices`)."""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jax_mlm.config import DataConfig, ModelConfig, TrainConfig
from jax_mlm.cost.memory import bytes_of
from jax_mlm.parallel import rules
from jax_mlm.parallel.mesh import make_mesh, make_placer, mesh_over, read_layout
from jax_mlm.parallel.stop import Greatest
from jax_mlm.run.checkpoint import restore, save_last, saving
from jax_mlm.train import optim
from jax_mlm.train.ahead import lowered_step
from jax_mlm.train.state import laid_out
from support.steps import KEY, jitted_step, losses, packed_batch


def learned(cases: list[str]) -> list[list[float]]:
    """Return the losses of each case, written optimizer-or-task:microbatches:mesh."""
    split = (case.split(":") for case in cases)
    return [losses(name, int(parts), make_mesh(16, int(parts), mesh)) for name, parts, mesh in split]


def gathers() -> dict[str, Any]:
    """Return what a step in 16 bits gathers, before the exchanges of a CPU are widened, and the shapes of matrices."""
    mesh = make_mesh(16, 2, "data=2,fsdp=4")
    step, state = jitted_step("adamw", 2, mesh, dtype=jnp.bfloat16)
    lowered = step.lower(KEY, state, make_placer(mesh)(packed_batch(0)), jnp.int32(9))
    with tempfile.TemporaryDirectory() as folder:
        lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"})
        text = next(Path(folder).glob("*after_spmd-partitioning*")).read_text()
    found = re.findall(r" = (\w+\[[\d,]*\])\S* all-gather\(", text)
    return {"gathers": found, "matrices": [leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim == 2]}


def memory(layout: str) -> dict[str, Any]:
    """Return what a compiled step holds between steps, and the bytes of the whole state by kind."""
    mesh = make_mesh(16, 1, layout)
    step, state = jitted_step("adamw", 1, mesh)
    batch = make_placer(mesh)(packed_batch(0))
    compiled = step.lower(KEY, state, batch, jnp.int32(9)).compile()
    leaves = jax.tree.leaves(state)
    rest = sum(leaf.nbytes for leaf in leaves if leaf.ndim < 2)
    given = sum(leaf.nbytes for leaf in jax.tree.leaves(batch)) // (mesh.shape["data"] * mesh.shape["fsdp"])
    return {
        "arguments": compiled.memory_analysis().argument_size_in_bytes,
        "params": sum(leaf.nbytes for leaf in jax.tree.leaves(state.params) if leaf.ndim == 2),
        "matrices": sum(leaf.nbytes for leaf in leaves if leaf.ndim == 2),
        "head": state.params["head"]["kernel"].nbytes,
        "rest": rest + given,
        "given": given,
        "gathers": compiled.as_text().count("all-gather("),
        "aliased": compiled.memory_analysis().alias_size_in_bytes,
    }


def orthogonalising(layout: str) -> float:
    """Return the operations of one device that turn 16 momenta of one shape into Muon's updates."""
    mesh = laid_over(layout)
    momenta = {str(number): jnp.ones((48, 32)) for number in range(16)}
    updates = jax.jit(lambda momenta: optim._every_orthogonalised(momenta, optim.Products(jnp.float32, mesh)))
    return updates.lower(momenta).compile().cost_analysis()["flops"]


def temporaries(layout: str, batch: int, parts: int) -> int:
    """Return the bytes that a device needs within a step, besides the state and the batch."""
    model = ModelConfig(vocab_size=256, width=64, layers=1, heads=4, ff_width=128, max_length=64)
    config = TrainConfig(model=model, dtype="float32", batch=batch, accumulate=parts, corpus=DataConfig(length=64))
    return bytes_of(lowered_step(config, laid_over(layout)).compile())["step"]


def laid_over(layout: str) -> Mesh:
    """Return a layout of as many of the devices as it names."""
    count = math.prod(int(part.split("=")[1]) for part in layout.split(","))
    return mesh_over(jax.devices()[:count], read_layout(layout, count))


def saved(folder: Path) -> int:
    """Save a state on eight devices, and on one; restore each onto other layouts and counts, whole and bit for bit.

    Return its number of arrays; state.npz in the folder has those of the first.
    """
    whole = restored(folder, "data=2,fsdp=2,tensor=2", ("data=8", "fsdp=8", "data=2,fsdp=2", "data=1"))
    with tempfile.TemporaryDirectory() as other:
        restored(Path(other), "data=1", ("data=4,fsdp=2", "fsdp=2,tensor=2"))
    np.savez(folder / "state.npz", *whole)
    return len(whole)


def restored(folder: Path, written: str, read: Sequence[str]) -> list[np.ndarray]:
    """Save a state on one layout, restore it onto others, and return its arrays."""
    _, state = jitted_step("muon", 1, laid_over(written))
    with saving(folder) as checkpoints:
        save_last(checkpoints, state, {"step": 0, "elapsed": 0.0, "horizon": 0}, None)
        for layout in read:
            laid = laid_out(state, laid_over(layout))
            like = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, laid)
            found = restore(checkpoints, like)
            assert found is not None
            for old, new, where in zip(*map(jax.tree.leaves, (state, found[0], like)), strict=True):
                assert new.sharding == where.sharding
                assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def votes(layout: str) -> tuple[int, bool]:
    """Return how many votes of eight devices are told apart, and the outcome where only the last one's is to stop."""
    vote = Greatest(make_mesh(16, 1, layout))
    cast = jax.make_array_from_callback((8,), vote._each, lambda at: (np.arange(8) == 7)[at].astype(np.int32))
    return len({shard.index[0].start for shard in cast.addressable_shards}), bool(vote._max(cast))


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    report: Any = gathers() if what == "held" else None
    rules.LARGE = 0  # the moments of these small matrices are divided over data too
    if what == "held":
        layouts = ("data=8", "data=4,fsdp=2", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2")
        report["memory"] = {layout: memory(layout) for layout in layouts}
        report["muon"] = {layout: orthogonalising(layout) for layout in ("data=1", *layouts)}
    elif what == "temporaries":
        report = [temporaries(*case) for case in json.loads(rest[0])]
    else:
        counted = [votes(layout) for layout in ("data=8", "fsdp=8", "data=2,fsdp=2,tensor=2")]
        report = {"losses": learned(rest), "saved": saved(Path(what)) if what else 0, "votes": counted}
    print(json.dumps(report))
