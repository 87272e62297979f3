"""Cross-entropy at the masked positions, as sums and counts: they add over microbatches, devices and hosts."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_mlm.model.ops.dense import cross_entropy


class Metrics(NamedTuple):
    """Sums over targets; divide once, at the end."""

    loss_sum: Array
    """Σ −ln p(target), in nats."""
    correct: Array
    """Targets ranked first."""
    count: Array
    """Targets."""
    more: dict[str, Array] = {}  # noqa: RUF012
    """Further sums of the objective, by name in the log."""
    skipped: Array | None = None
    """1 if the step's update was skipped, else 0; None outside of a step."""


def masked_metrics(logits: Float[Array, "B P V"], targets: Int[Array, "B P"], weights: Float[Array, "B P"]) -> Metrics:
    """Return sums over the slots of weight 1, in float32 whatever type the model computes in."""
    V = logits.shape[-1]
    logits, targets, weights = logits.astype(jnp.float32).reshape(-1, V), targets.reshape(-1), weights.reshape(-1)
    loss = cross_entropy(logits, targets) * weights
    # A tie is not a right answer, nor is NaN; and `any` vectorises on CPU, where argmax does not.
    at_target = jnp.take_along_axis(logits, targets[:, None], axis=-1)
    beaten = ((logits >= at_target) & (jnp.arange(V) != targets[:, None])).any(-1)
    correct = (~beaten & ~jnp.isnan(at_target[:, 0])) * weights
    return Metrics(loss.sum(), correct.sum(), weights.sum())
