"""Loss and metrics against values computed by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_mlm.evals.heldout import unigram_baseline
from jax_mlm.tasks.metrics import masked_metrics


def test_cross_entropy_by_hand():
    """p = (1/2, 1/4, 1/4) at a target of 0, 1/4 at a target of 2, and a slot that weighs nothing."""
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.9, 0.05, 0.05]]]))
    metrics = masked_metrics(logits, jnp.array([[0, 2, 1]]), jnp.array([[1.0, 1.0, 0.0]]))
    assert metrics.loss_sum == pytest.approx(np.log(2) + np.log(4), rel=1e-6)
    assert (metrics.correct, metrics.count) == (1.0, 2.0)


def test_large_logits_neither_overflow_nor_lose_the_loss():
    metrics = masked_metrics(jnp.array([[[1e4, 0.0]]]), jnp.array([[1]]), jnp.ones((1, 1)))
    assert metrics.loss_sum == pytest.approx(1e4)


def test_a_tie_is_not_a_right_answer():
    assert masked_metrics(jnp.zeros((1, 1, 5)), jnp.array([[2]]), jnp.ones((1, 1))).correct == 0


def test_unigram_baseline_by_hand():
    """Counts 3, 0, 0 with one added each: p = 4/6, 1/6, 1/6."""
    loss, accuracy = unigram_baseline(np.array([3, 0, 0]), np.array([1, 1, 0]))
    assert loss == pytest.approx(-(np.log(4 / 6) + np.log(1 / 6)) / 2)
    assert accuracy == 0.5
