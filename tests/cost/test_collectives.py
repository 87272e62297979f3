"""The exchanges that are read from a compiled program, against those that it was written to make."""

from __future__ import annotations

import json

import pytest
from support.eight import on_eight_devices

from jax_mlm.cost.chips import CHIPS
from jax_mlm.cost.collectives import Exchange, exchanges

PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from jax_mlm.cost.collectives import exchanges
from jax_mlm.parallel.mesh import Layout, mesh_over

mesh = mesh_over(jax.devices(), Layout(2, 2, 2))
at = lambda *axes: NamedSharding(mesh, P(*axes))

def summed(x):  # in a loop of five rounds
    once = lambda carry, _: (jax.lax.psum(jnp.cos(carry), ("data", "fsdp")), None)
    alone = lambda part: jax.lax.scan(once, part, None, length=5)[0]
    return jax.shard_map(alone, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)(x)

def gathered(x):
    return jax.lax.with_sharding_constraint(x, at())

def found(function, sharding, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    text = jax.jit(function).lower(x).compile().as_text()
    return [list(each) for each in exchanges(text, list(mesh.shape.items()), 2)]

print(json.dumps([found(summed, at(), (64,)), found(gathered, at(None, "tensor"), (8, 64)),
                  found(gathered, at(), (8, 64))]))
"""


def test_exchanges_are_counted_with_their_axes_and_bytes() -> None:
    """Devices 0 and 1, 2 and 3, … share a machine.

    Around a ring of n, a sum sends 2·(n − 1)/n of the array from each device, a gather (n − 1)/n.
    """
    summed, gathered, nothing = json.loads(on_eight_devices(PROGRAM))
    assert summed == [["all-reduce", "data+fsdp", 4, 1, 5, 5 * 2 * 3 / 4 * 64 * 4]]
    assert gathered == [["all-gather", "tensor", 2, 2, 1, 1 / 2 * 8 * 64 * 4]]
    assert nothing == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "%a = (f32[4], f32[32]{0}) all-gather-start(%x), replica_groups=[4,2]<=[8], dimensions={0}",
            ("all-gather", "tensor", 2, 2, 1, 64.0),
        ),
        (
            "%a = ((f32[2]{0}, f32[64]{0}), (f32[2]{0}, f32[64]{0})) all-reduce-start(%x, %y), replica_groups={}",
            ("all-reduce", "data+fsdp+tensor", 8, 2, 1, 2 * 7 / 8 * 4 * 66),
        ),
        (
            "%a = ((f32[64]{0:T(128)}), f32[64]{0:T(128)}) all-reduce-start(%x), replica_groups=[4,2]<=[8]",
            ("all-reduce", "tensor", 2, 2, 1, 256.0),
        ),
        (
            "%a = ((f32[4], bf16[8]), (f32[4], bf16[8]), u32[], u32[]) collective-permute-start(%x, %y), "
            "source_target_pairs={{0,4},{4,0}}",
            ("collective-permute", "data", 2, 1, 1, 32.0),
        ),
        (
            "%a = f32[4]{0} reduce-scatter(f32[32] %x), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}",
            ("reduce-scatter", "data+fsdp", 4, 1, 1, 48.0),
        ),
        (
            "%a = bf16[4,8]{1,0} collective-permute(%x), source_target_pairs={{0,4},{4,0}}",
            ("collective-permute", "data", 2, 1, 1, 64.0),
        ),
        (
            "%a = f32[64]{0} all-reduce(%x), replica_groups=mesh['data'=2,'fsdp'=2,'tensor'=2] {'data','tensor'}",
            ("all-reduce", "data+tensor", 4, 2, 1, 384.0),
        ),
        (
            "%a = f32[64]{0} all-reduce(%x), replica_groups=mesh['all'=8] {'all':(2)2}, to_apply=%region",
            ("all-reduce", "fsdp", 2, 1, 1, 256.0),
        ),
        (
            "%a = f32[8]{0} all-gather(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}",
            ("all-gather", "tensor", 2, 2, 1, 16.0),
        ),
        (
            "%a = f32[64]{0} all-reduce(%x), replica_groups={}, to_apply=%region",
            ("all-reduce", "data+fsdp+tensor", 8, 2, 1, 448.0),
        ),
        (
            "%a = bf16[16]{0} all-to-all(%x), replica_groups=[2,4]<=[4,2]T(1,0)",
            ("all-to-all", "data+fsdp", 4, 1, 1, 24.0),
        ),
        (
            "%a = (f8e4m3fn[16]{0}, pred[], u64[2]{0}) all-to-all(%x), replica_groups={{0,1}}",
            ("all-to-all", "tensor", 2, 2, 1, 16.5),
        ),
    ],
)
def test_each_way_to_write_an_exchange_is_read(line: str, expected: tuple[object, ...]) -> None:
    program = f"ENTRY %main (x: f32[4]) -> f32[4] {{\n  {line}\n}}"
    assert exchanges(program, [("data", 2), ("fsdp", 2), ("tensor", 2)], 2) == [expected]


@pytest.mark.parametrize("name", CHIPS)
def test_every_chip_has_a_known_peak(name: str) -> None:
    """The roofline of each is that of a device whose name JAX knows."""
    chip = CHIPS[name]
    assert chip.flops > 1e14
    assert chip.bandwidth > chip.link > chip.network


def test_the_devices_of_a_machine_share_its_way_out() -> None:
    """Eight devices in one ring leave a machine once, those of eight rings all at the same time."""
    chip = CHIPS["h100"]
    inside, across, apart = (Exchange("all-reduce", "data", n, local, 1, 8e9) for n, local in ((8, 8), (16, 8), (2, 1)))
    assert chip.seconds(inside) == 8e9 / chip.link
    assert chip.seconds(across) == max(8e9 / chip.link, 1e9 / chip.network)
    assert chip.seconds(apart) == 8e9 / chip.network
