"""Devices that are not here: their compilers make programs for them on any machine, where those are installed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from jax_mlm.cost.chips import CHIPS, Chip
from jax_mlm.errors import UserError, unknown_choice
from jax_mlm.model.ops.kernels import on_hopper
from jax_mlm.parallel.mesh import mesh_over, read_layout

MOST = 4096
"""Devices of the largest mesh that is simulated."""
HOPPER = """gpu_device_info {{
  cuda_compute_capability {{ major: 9 }} core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536 l2_cache_size: 52428800
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: 13 }}
device_description_str: "{kind}"
"""
"""What XLA must know of an H100 or H200, from NVIDIA's CUDA C++ programming guide (compute capability 9.0) and data
sheets."""


class Slice(NamedTuple):
    """Devices that are not here."""

    name: str
    chip: Chip
    devices: int

    @property
    def tpu(self) -> bool:
        return self.chip.kind.startswith("TPU")

    @property
    def simulated(self) -> bool:
        """Return whether as many devices of the CPU stand for them: their compiler is not here, or not known."""
        return not self.tpu and not (self.chip.hopper and find_spec("jax_cuda13_plugin"))


def read_slice(name: str) -> Slice:
    """Return what `--topology` names.

    Raises:
        UserError: there is no such chip, or no such number of them.
    """
    chip, _, shape = name.partition(":")
    if chip not in CHIPS:
        raise unknown_choice("--topology", chip, CHIPS)
    where = Slice(name, CHIPS[chip], 1)
    pattern = r"\d{1,4}(x\d{1,4}){1,2}" if where.tpu else r"\d{1,6}"
    devices = 1
    for size in re.findall(r"\d+", shape):
        devices *= int(size)
    if not re.fullmatch(pattern, shape, re.ASCII) or not 0 < devices <= (where.chip.linked if where.tpu else MOST):
        example = f"{chip}:4x4" if where.tpu else f"{chip}:8"
        raise UserError(f"--topology {name}: write {example}, of devices that there are")
    return where._replace(devices=devices)


def without_devices(simulated: int) -> None:
    """Keep JAX from looking for devices, and give it as many of its own as are simulated."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    jax.config.update("jax_platforms", "cpu")
    if simulated > 1:
        jax.config.update("jax_num_cpu_devices", simulated)


def mesh_of(where: Slice, layout: str) -> Mesh:
    """Return the mesh of devices that are not here.

    Raises:
        UserError: the compiler of a TPU is missing, or one does not know such devices.
    """
    sizes = read_layout(layout, where.devices)
    if where.simulated:
        return mesh_over(jax.devices()[: where.devices], sizes)
    if not where.tpu:
        machine = next(size for size in range(where.chip.linked, 0, -1) if where.devices % size == 0)
        target = HOPPER.format(**where.chip._asdict())
        shape = f"1x{where.devices // machine}x{machine}"
        try:
            found = topologies.get_topology_desc(platform="cuda", target_config=target, topology=shape)
        except (RuntimeError, OSError) as error:  # it does not load, or does not fit this JAX
            raise UserError(f"--topology {where.name}: the compiler for GPUs: {str(error).splitlines()[0]}") from None
        return mesh_over(found.devices, sizes)
    if find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:  # where JAX looks for it
        raise UserError(f"--topology {where.name} needs the TPU's compiler: pip install 'jax-mlm[plan]'")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=where.name)
    except jax.errors.JaxRuntimeError as error:  # no slice has this shape: libtpu alone knows them
        raise UserError(f"--topology {where.name}: {str(error).splitlines()[0]}") from None
    return mesh_over(found.devices, sizes)


@contextmanager
def compiling_for(mesh: Mesh, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the options that a mesh's compiler takes; for GPUs that are not here, their kernels can then be lowered."""
    if mesh.devices.flat[0].platform != "gpu":
        yield dict(options)
        return
    with on_hopper():
        yield {**options, "xla_gpu_autotune_level": 0}  # it would run kernels
