"""The device mesh and where arrays live on it: rows are divided over `data`, parameters are on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array

from jax_mlm.errors import UserError


def make_mesh(batch: int, accumulate: int) -> Mesh:
    """Return a mesh of one axis, `data`, over all devices, host by host; a microbatch must divide evenly over them."""
    devices = jax.devices()
    if (batch // accumulate) % len(devices):
        raise UserError(
            f"--batch {batch} in {accumulate} microbatches does not divide over {len(devices)} devices: "
            f"make it a multiple of {accumulate * len(devices)}"
        )
    return Mesh(np.array(sorted(devices, key=lambda device: (device.process_index, device.id))), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Return the sharding of the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def make_copier(mesh: Mesh) -> Callable[[ArrayLike], Array]:
    """Return `copy(x)`: a value that all hosts have → a copy on every device, unchecked, unlike `jax.device_put`."""
    sharding = replicated(mesh)
    return lambda x: jax.make_array_from_process_local_data(sharding, x)


def make_placer(mesh: Mesh) -> Callable[[Any], Any]:  # any tree of numpy arrays → the same tree of JAX arrays
    """Return `place(batch)`: this host's rows → arrays of the global batch."""
    sharding = by_row(mesh)

    return lambda batch: jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
