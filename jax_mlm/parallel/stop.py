"""Requests to stop, from a signal, and what several hosts agree on while they train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mlm.signals import current_requests


class Greatest:
    """The greatest of all hosts' numbers, the same on each of them.

    Each call hands in this host's number and returns the outcome of the call before, so nothing waits for a step
    dispatched in between; the first call returns 0. A single host gets its own number back at once. Every device holds
    a number of its own, its host's.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._local = len(mesh.local_devices)
        self._each = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
        self._max = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._before = self._hand_in(0) if jax.process_count() > 1 else None

    def _hand_in(self, number: int) -> jax.Array:
        numbers = np.full(self._local, number, np.int32)
        return self._max(jax.make_array_from_process_local_data(self._each, numbers))

    def __call__(self, number: int) -> int:
        if self._before is None:
            return number
        before, self._before = self._before, self._hand_in(number)
        return int(before)


@contextmanager
def stop_request() -> Iterator[Callable[[], int]]:
    """Hold back the requests to stop that a command gets: the function returns the signal's number, or 0 before."""
    requests = current_requests()
    if requests is None:
        yield lambda: 0
        return
    with requests.held():
        yield lambda: requests.number
