"""Masked language modelling: loss and accuracy at the masked positions."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Array, Key

from jax_mlm.data.batches import Batch
from jax_mlm.model.encoder import Forward, Inputs, Params
from jax_mlm.tasks.masking import Masked
from jax_mlm.tasks.metrics import Metrics, masked_metrics

Objective = Callable[..., tuple[Array, Metrics]]
"""(params, fixed params, targets a token, batch, masked rows, dropout keys) → what to minimise, and the metrics.

Both are sums over targets; a mean over tokens becomes one when it is multiplied by the targets a token, a number of the
whole batch.
"""


def batch_metrics(
    forward: Forward, params: Params, batch: Batch, masked: Masked, drop_keys: Key[Array, B] | None
) -> Metrics:
    """Loss and accuracy sums of masked rows."""
    inputs = Inputs(masked.tokens, batch.segments, batch.positions)
    logits = forward(params, inputs, masked.at, row_keys=drop_keys)
    return masked_metrics(logits, masked.targets, masked.weights)
