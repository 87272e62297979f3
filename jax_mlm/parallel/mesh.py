"""The device mesh and where arrays live on it: rows are divided over `data` and `fsdp`, the state as the rules say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array

from jax_mlm.errors import UserError, nearest

ROWS = ("data", "fsdp")
"""The axes of the mesh that rows are divided over."""


class Layout(NamedTuple):
    """Devices along each axis of the mesh."""

    data: int = 1
    """Each computes other rows, with parameters of its own."""
    fsdp: int = 1
    """Each computes other rows too, and keeps a part of every matrix, which is gathered for a product."""
    tensor: int = 1
    """Each computes a part of every product, for the same rows."""

    @property
    def rows(self) -> int:
        """Return the number of devices that compute different rows."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        return ",".join(f"{axis}={size}" for axis, size in self._asdict().items() if size > 1) or "data=1"


def read_layout(text: str, devices: int) -> Layout:
    """Return what `--mesh` asks for: data=4,fsdp=2, say; axes that are not named have one device.

    Empty is all devices along `data`.

    Raises:
        UserError: an axis or a number is wrong, or they do not multiply to the number of devices.
    """
    if not text:
        return Layout(devices)
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (each.strip() for each in part.partition("="))
        if axis not in Layout._fields:
            raise UserError(
                f"--mesh {text}: no axis {axis!r} (there are: {', '.join(Layout._fields)})"
                f"{nearest(axis, Layout._fields)}"
            )
        if axis in sizes or not (size.isascii() and size.isdigit() and 0 < int(size) < 1 << 31):
            raise UserError(f"--mesh {text}: write each axis once, with its number of devices: data=4,fsdp=2")
        sizes[axis] = int(size)
    layout = Layout(**sizes)
    if math.prod(layout) != devices:
        raise UserError(f"--mesh {text} is for {math.prod(layout)} devices, but there are {devices}")
    return layout


def make_mesh(batch: int, accumulate: int, mesh: str = "") -> Mesh:
    """Return the mesh of all devices, host by host, that `--mesh` asks for; a microbatch must divide over its rows.

    Raises:
        UserError: `mesh` does not fit the devices, or the batch.
    """
    devices = jax.devices()
    layout = read_layout(mesh, len(devices))
    if layout.tensor > 1 and jax.local_device_count() % layout.tensor:
        raise UserError(
            f"--mesh {mesh}: the {layout.tensor} devices of tensor compute the same rows and must be of one host, "
            f"which has {jax.local_device_count()}"
        )
    if (batch // accumulate) % layout.rows:
        raise UserError(
            f"--batch {batch} in {accumulate} microbatches does not divide over {layout.rows} devices: "
            f"make it a multiple of {accumulate * layout.rows}, or choose a --mesh whose data × fsdp divides "
            f"{batch // accumulate}"
        )
    return mesh_over(devices, layout)


def mesh_over(devices: Sequence[Any], layout: Layout) -> Mesh:  # of JAX's devices, whose class is not public
    """Return the mesh of these devices, host by host."""
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(layout), Layout._fields)


def layout_of(mesh: Mesh) -> Layout:
    """Return the devices along each axis of a mesh."""
    return Layout(**mesh.shape)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Return the sharding of the first axis over the devices that compute different rows."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def make_copier(mesh: Mesh) -> Callable[[ArrayLike], Array]:
    """Return `copy(x)`: a value that all hosts have → a copy on every device, unchecked, unlike `jax.device_put`."""
    sharding = replicated(mesh)
    return lambda x: jax.make_array_from_process_local_data(sharding, x)


def make_placer(mesh: Mesh) -> Callable[[Any], Any]:  # any tree of numpy arrays → the same tree of JAX arrays
    """Return `place(batch)`: this host's rows → arrays of the global batch."""
    sharding = by_row(mesh)

    return lambda batch: jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
