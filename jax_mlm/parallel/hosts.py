"""Several hosts as one: they join, agree and stop together, and the first prints and writes for all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np

from jax_mlm.errors import UserError, described

T = TypeVar("T")
ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join(asked: bool) -> None:
    """Join the other hosts that run this command, before any device is used; do nothing if there are none.

    With `asked`, find them as JAX does, from the environment that a TPU pod, Slurm or Open MPI gives each process.
    Setting $JAX_COORDINATOR_ADDRESS (host:port of the first) has the same effect, together with $JAX_NUM_PROCESSES and
    $JAX_PROCESS_ID outside of those systems, and so has naming several hosts in $TPU_WORKER_HOSTNAMES.

    Raises:
        UserError: the number of hosts, or this host's own number, is unknown.
    """
    named = os.environ.get(ADDRESS) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if jax.distributed.is_initialized() or not (asked or named):
        return
    if hasattr(jax.config, "jax_enable_preemption_service"):  # it would catch SIGTERM and only record it
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(num_processes=_number(COUNT), process_id=_number(NUMBER))
    except ValueError as error:
        raise UserError(
            f"cannot join the other hosts ({error}): outside of a TPU pod, Slurm and Open MPI, set ${ADDRESS} "
            f"(host:port of the first), ${COUNT} and ${NUMBER}"
        ) from None


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is None:
        return None
    if not text.isdecimal():
        raise UserError(f"${variable} is {text!r}: expected an integer")
    return int(text)


def is_first() -> bool:
    """Return whether this host is the one that prints and writes."""
    return jax.process_index() == 0


@contextmanager
def only_first_prints() -> Iterator[None]:
    """Discard what the other hosts print in this context; exceptions propagate."""
    with contextlib.ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def gather(text: str) -> list[str]:
    """Return every host's text, in order of their numbers; all hosts must call this."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental.multihost_utils import process_allgather

    encoded = np.frombuffer(text.encode(), np.uint8)
    sizes = process_allgather(np.int32(len(encoded)))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: len(encoded)] = encoded
    return [bytes(row[:size]).decode() for row, size in zip(process_allgather(padded), sizes, strict=True)]


def first_of(array: np.ndarray) -> np.ndarray:
    """Return the first host's array on all hosts; theirs has its shape. All hosts must call this."""
    if jax.process_count() == 1:
        return array
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return np.asarray(broadcast_one_to_all(array))


def on_every_host(act: Callable[[], T]) -> T:
    """Run `act` on every host.

    If it raises UserError or fails to read or write on any of them, all stop and exactly one reports it, so none is
    left waiting.
    """
    try:
        result = act()
    except UserError as error:
        result = error
    except OSError as error:
        if error.errno is None:  # not from the operating system, so a defect
            raise
        result = UserError(described(error))
    messages = gather(str(result) if isinstance(result, UserError) else "")
    failed = [number for number, message in enumerate(messages) if message]
    if isinstance(result, UserError):
        raise result if failed[0] == jax.process_index() else SystemExit(2)
    if failed:
        raise SystemExit(2)
    return result


def agree(what: str, value: str) -> None:
    """Stop all hosts if one of them has a different value.

    Raises:
        UserError: on the first of them; the others exit silently.
    """
    values = gather(value)
    if len(set(values)) == 1:
        return
    other = next(number for number, theirs in enumerate(values) if theirs != values[0])
    if is_first():
        raise UserError(f"host {other} has different {what} from the first: run the same command over the same files")
    raise SystemExit(2)
