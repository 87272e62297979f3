"""Requests to stop: from a signal, and from any of several hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mlm.signals import current_requests


class Vote:
    """A vote of all hosts on whether to stop, with one outcome for all of them.

    Each call casts this host's vote and returns the outcome of the call before, so nothing waits for a step dispatched
    in between. A single host gets its own vote back at once. Every device has a vote of its own, its host's.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._local = len(mesh.local_devices)
        self._each = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._before = self._cast(False) if jax.process_count() > 1 else None

    def _cast(self, wish: bool) -> jax.Array:
        votes = np.full(self._local, wish, np.int32)
        return self._any(jax.make_array_from_process_local_data(self._each, votes))

    def __call__(self, wish: bool) -> bool:
        if self._before is None:
            return wish
        before, self._before = self._before, self._cast(wish)
        return bool(before)


@contextmanager
def stop_request() -> Iterator[Callable[[], int]]:
    """Hold back the requests to stop that a command gets: the function returns the signal's number, or 0 before."""
    requests = current_requests()
    if requests is None:
        yield lambda: 0
        return
    with requests.held():
        yield lambda: requests.number
