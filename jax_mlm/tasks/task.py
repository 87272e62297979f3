"""The seam between what is learned and how: the step, the loop and the checkpoints know a task by these fields only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jax_mlm.model.encoder import Params
from jax_mlm.tasks.metrics import Metrics

Example = TypeVar("Example")
"""What a task makes of a batch: a tree of arrays whose first axis is B, so that it divides into microbatches."""


@dataclass(frozen=True)
class Task(Generic[Example]):
    """What a model learns, as pure functions; a new task is a function that returns one of these.

    A batch is of the kind that its rows gather: `Batch`, or `LabelledBatch`.
    """

    init: Callable[[Key[Array, ""]], Params]
    """Return fresh parameters, the body's and the head's."""
    prepare: Callable[[Any, Key[Array, " B"], Int[Array, ""], Int[Array, ""]], Example]
    """(batch, a key for each row, step, horizon) → what the loss reads; it draws what is random."""
    loss: Callable[[Params, Params | None, Example, Key[Array, " B"] | None], tuple[Float[Array, ""], Metrics]]
    """(params, frozen, example, dropout keys) → what to minimise and what to log, both as sums over targets."""
    examine: Callable[[Params, Any], Metrics]
    """(params, batch) → validation sums, the same at every call with the same arguments."""
    scheduled: Callable[[int, int], dict[str, float]]
    """(step, horizon) → scheduled values, by name in the log."""
    targets: int
    """Maximum number of positions per row at which the vocabulary is projected."""
    asked: Literal["targets", "slots", "tokens"] = "targets"
    """Where the last layer computes more than keys and values: at the targets, the batch's slots, or all tokens."""
    fixed: Callable[[Params], Params] | None = None
    """Return True for each parameter that stays as it is (--freeze); None where all are trained."""
    cast: Callable[[Params], Params] = lambda params: params
    """Return the parameters as the loss multiplies them; done once a step, however many microbatches it has."""
    later: tuple[tuple[float, Task[Example]], ...] = ()
    """(share of the horizon, the same task with fewer targets, and so faster): from there on, no step has more."""
    frozen: Params | None = None
    """Parameters that the loss reads but does not train, such as a teacher's; an argument of the step."""


def library_of(step: Array | int) -> ModuleType:
    """Return the array library that fits a step: NumPy for a Python number, so that logging waits for nothing."""
    return jnp if isinstance(step, Array) else np
