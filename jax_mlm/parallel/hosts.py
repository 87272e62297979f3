"""Several hosts as one: joining, agreeing, stopping together, and one of them that speaks and writes for all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import numpy as np

from jax_mlm.errors import UserError

T = TypeVar("T")
ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join(asked: bool) -> None:
    """Join the other hosts that run this command, before any device is used; do nothing where there are none.

    `asked` looks for them as JAX does: in what a TPU pod, Slurm or Open MPI tell each process. $JAX_COORDINATOR_ADDRESS
    (host:port of the first) asks too, with $JAX_NUM_PROCESSES and $JAX_PROCESS_ID where none of those is there, and so
    do several $TPU_WORKER_HOSTNAMES.

    Raises:
        UserError: it is not known how many hosts there are, or which one this is.
    """
    told = os.environ.get(ADDRESS) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if jax.distributed.is_initialized() or not (asked or told):
        return
    if hasattr(jax.config, "jax_enable_preemption_service"):  # it would take SIGTERM, and only note it
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
def first_speaks() -> Iterator[None]:
    """Drop what the other hosts print in this context; errors pass."""
    with contextlib.ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def gather(text: str) -> list[str]:
    """Return each host's text, by its number; all hosts have to call this."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental.multihost_utils import process_allgather

    said = np.frombuffer(text.encode(), np.uint8)
    sizes = process_allgather(np.int32(len(said)))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: len(said)] = said
    return [bytes(row[:size]).decode() for row, size in zip(process_allgather(padded), sizes, strict=True)]


def on_every_host(act: Callable[[], T]) -> T:
    """Run `act` on every host.

    If it raises UserError on any of them, all stop and exactly one reports it, so none is left waiting.
    """
    try:
        made = act()
    except UserError as error:
        made = error
    failed = [number for number, said in enumerate(gather(str(made) if isinstance(made, UserError) else "")) if said]
    if isinstance(made, UserError):
        raise made if failed[0] == jax.process_index() else SystemExit(2)
    if failed:
        raise SystemExit(2)
    return made


def agree(what: str, value: str) -> None:
    """Stop all hosts where one of them has another value.

    Raises:
        UserError: on the first of them; the others end without a word.
    """
    said = gather(value)
    if len(set(said)) == 1:
        return
    other = next(number for number, text in enumerate(said) if text != said[0])
    if is_first():
        raise UserError(f"host {other} has other {what} than the first: run the same command over the same files")
    raise SystemExit(2)
