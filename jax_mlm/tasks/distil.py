"""A smaller model learns from a larger one (DistilBERT, Sanh et al. 2019): `train --distil TEACHER`.

The student shares the teacher's tokenizer and starts from every other one of its layers. Besides the masked tokens it
learns the teacher's probabilities at the same positions, softened by a temperature, and the direction of the teacher's
last hidden states at every token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from jax_mlm.config import DistilConfig, ModelConfig
from jax_mlm.data.batches import Batch
from jax_mlm.model.encoder import Inputs, Params
from jax_mlm.model.heads import MaskedLM, make_cast
from jax_mlm.model.ops.kernels import OURS, Kernels
from jax_mlm.tasks.metrics import Metrics, masked_metrics
from jax_mlm.tasks.mlm import MaskedBatch
from jax_mlm.tasks.task import Task


def soft_targets(
    student: Float[Array, "B P V"], teacher: Float[Array, "B P V"], weights: Float[Array, "B P"], temperature: float
) -> Float[Array, ""]:
    """Return Σ T² · KL(teacher ‖ student) of the softened probabilities over the slots used (Hinton et al. 2015)."""
    log_s = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    log_t = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    divergence = (jnp.exp(log_t) * (log_t - log_s)).sum(-1)
    return temperature**2 * (divergence * weights).sum()


def cosine_distance(
    student: Float[Array, "B S D"], teacher: Float[Array, "B S D"], weights: Float[Array, "B S"]
) -> Float[Array, ""]:
    """Return Σ 1 − cos of the two hidden states, over tokens of weight 1."""
    s, t = student.astype(jnp.float32), teacher.astype(jnp.float32)
    lengths = jnp.sqrt(jnp.square(s).sum(-1) * jnp.square(t).sum(-1) + 1e-12)
    return ((1.0 - (s * t).sum(-1) / lengths) * weights).sum()


def make_states(config: ModelConfig, dtype: DTypeLike, kernels: Kernels = OURS) -> Callable[..., tuple[Array, Array]]:
    """Return `states(params, inputs, at, row_keys=None)` → normalised hidden states [B, S, D], and logits [B, P, V]."""

    def both(module: MaskedLM, inputs: Inputs, at: Array, row_keys: Array | None) -> tuple[Array, Array]:
        x = module.hidden(inputs, None, row_keys)
        logits = module.vocabulary(jnp.take_along_axis(x, at[..., None], axis=1))
        if config.norm_first:
            x = module.final_norm(x.reshape(-1, config.width)).reshape(x.shape)
        return x, logits

    apply = nn.apply(both, MaskedLM(config, dtype, kernels))
    return lambda params, inputs, at, row_keys=None: apply({"params": params}, inputs, at, row_keys)


class DistilBatch(NamedTuple):
    """A masked batch, and the whole batch's ratio of targets to tokens, repeated for each row."""

    example: MaskedBatch
    targets_per_token: Float[Array, " B"]


def distilled(
    task: Task[MaskedBatch],
    config: DistilConfig,
    student: ModelConfig,
    teacher: ModelConfig,
    teacher_params: Params,
    dtype: DTypeLike,
    kernels: Kernels = OURS,
) -> Task[DistilBatch]:
    """Return the masked-LM `task` with a new loss: the weighted sum of its own, soft targets and cosine, over targets.

    Soft targets are taken where the vocabulary is projected anyway, at the masked tokens; the cosine at every token.
    `kernels` compute the student's attention.
    """
    run_student, run_teacher = make_states(student, dtype, kernels), make_states(teacher, dtype)
    tokens = min(student.vocab_size, teacher.vocab_size)  # further rows of a table are padding

    def prepare(batch: Batch, keys: Key[Array, " B"], step: Int[Array, ""], horizon: Int[Array, ""]) -> DistilBatch:
        example = task.prepare(batch, keys, step, horizon)
        share = example.masked.weights.sum() / jnp.maximum((batch.segments > 0).sum(), 1)
        return DistilBatch(example, jnp.broadcast_to(share, batch.rows.shape))

    def loss(
        params: Params, frozen: Params | None, batch: DistilBatch, drop_keys: Key[Array, " B"] | None
    ) -> tuple[Float[Array, ""], Metrics]:
        assert frozen is not None, "the teacher's parameters are the step's last argument"
        masked, inputs = batch.example.masked, batch.example.inputs()
        hidden, logits = run_student(params, inputs, masked.at, drop_keys)
        their_hidden, their_logits = jax.lax.stop_gradient(run_teacher(frozen, inputs, masked.at))
        metrics = masked_metrics(logits, masked.targets, masked.weights)
        soft = soft_targets(logits[..., :tokens], their_logits[..., :tokens], masked.weights, config.distil_temperature)
        total, more = config.distil_mlm * metrics.loss_sum + config.distil_soft * soft, {"soft": soft}
        if student.width == teacher.width and config.distil_cosine:
            distance = cosine_distance(hidden, their_hidden, (inputs.segments > 0).astype(jnp.float32))
            more["cosine"] = batch.targets_per_token[0] * distance
            total += config.distil_cosine * more["cosine"]
        return total, metrics._replace(more=more)

    frozen = make_cast(teacher, dtype, teacher.tied)(teacher_params)
    given = task.init, prepare, loss, task.examine, task.scheduled, task.targets
    return Task(*given, asked="tokens", cast=task.cast, frozen=frozen)
