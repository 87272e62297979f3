"""What the data sheets say of accelerators: rates, memory, and links between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from jax_mlm.cost.collectives import Exchange
from jax_mlm.cost.flops import peak_flops


class Chip(NamedTuple):
    """One device of a kind; rates are those of the vendors' data sheets, in one direction."""

    kind: str
    """As JAX names the device."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second between a device and its memory."""
    link: float
    """Bytes a second from one device to those it is linked with, over all of its ports."""
    linked: int
    """Devices that are linked; more of them are joined by a network."""
    network: float
    """Bytes a second from one device into that network."""
    hopper: bool = False
    """Whether it is a GPU of compute capability 9.0."""

    @property
    def pool(self) -> float:
        """Return the bytes that JAX takes for arrays: three quarters of a GPU's, unless it is told otherwise."""
        return self.memory * (1 if self.kind.startswith("TPU") else 0.75)

    @property
    def flops(self) -> float:
        """Return its dense bfloat16 peak."""
        found = peak_flops(self.kind)
        assert found is not None
        return found

    def seconds(self, exchange: Exchange) -> float:
        """Return the least time of an exchange: those in a machine share its ways out, where a ring needs one."""
        outside = exchange.devices > exchange.local
        return max(exchange.sent / self.link, outside * exchange.sent / exchange.local / self.network)


CHIPS: Mapping[str, Chip] = {
    # docs.cloud.google.com/tpu/docs: v5e, v5p and v6e; half of what they call the bidirectional interconnect bandwidth.
    "v5e": Chip("TPU v5 lite", 16e9, 819e9, 200e9, 256, 3.1e9),
    "v5p": Chip("TPU v5p", 95e9, 2765e9, 600e9, 8960, 6.2e9),
    "v6e": Chip("TPU v6 lite", 32e9, 1638e9, 400e9, 256, 12.5e9),
    # NVIDIA's data sheets of A100 SXM 80 GB, H100 SXM and H200 SXM, in machines of eight with a network port each.
    "a100": Chip("NVIDIA A100", 80e9, 2039e9, 300e9, 8, 25e9),
    "h100": Chip("NVIDIA H100", 80e9, 3350e9, 450e9, 8, 50e9, hopper=True),
    "h200": Chip("NVIDIA H200", 141e9, 4800e9, 450e9, 8, 50e9, hopper=True),
}
"""By the name that `--topology` begins with."""
