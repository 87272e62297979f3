"""Learn from labelled batches: labels of texts or words, numbers, or answers. Losses are sums over items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Shaped

from jax_mlm.config import ModelConfig, TaskConfig
from jax_mlm.data.labelled import LabelledBatch
from jax_mlm.data.labels import Example, number_of, one_label, several
from jax_mlm.errors import UserError, nearest
from jax_mlm.model.encoder import Inputs, Params
from jax_mlm.model.heads import make_cast
from jax_mlm.model.ops.kernels import OURS, Kernels
from jax_mlm.model.task_heads import init_task_params, make_task_forward
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.tasks.questions import span_metrics
from jax_mlm.tasks.scores import Scores, of_numbers, of_one_label, of_several_labels
from jax_mlm.tasks.task import Task

BALANCED = "balanced"


@lru_cache
def make_logits(
    model: ModelConfig, task: TaskConfig, dtype: DTypeLike, kernels: Kernels = OURS
) -> Callable[..., Float[Array, "B P K"]]:
    """Return `logits(params, batch, dropout keys=None)`; token types are read by models that have two of them.

    They are those of the slots; to find answers, those of every position.
    """
    forward = make_task_forward(model, task, dtype, kernels)

    def logits(
        params: Params, batch: LabelledBatch, drop_keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B P K"]:
        types = batch.types if task.pair and model.token_types > 1 else None
        inputs = Inputs(*map(jnp.asarray, (batch.tokens, batch.segments, batch.positions)))
        B, S = inputs.tokens.shape
        at = jnp.broadcast_to(jnp.arange(S), (B, S)) if task.kind == "answer" else jnp.asarray(batch.at)
        return forward(params, inputs, at, types, drop_keys)

    return logits


def label_metrics(
    problem: str,
    logits: Float[Array, "B P K"],
    targets: Shaped[Array, "B P *K"],
    weights: Float[Array, "B P"],
) -> Metrics:
    """Return weighted sums over the slots; `correct` is NaN of a regression, where nothing is right or wrong.

    As in transformers, the loss of several labels is the mean over them, and that of a number the squared error.
    """
    if problem == "regression":
        loss, right = jnp.square(logits[..., 0] - targets), jnp.full_like(weights, jnp.nan)
    elif problem == "multi":
        loss = optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
        right = ((logits > 0) == (targets > 0)).all(-1)
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        right = logits.argmax(-1) == targets
    return Metrics((loss * weights).sum(), (right * weights).sum(), weights.sum())


@lru_cache
def labelled(
    model: ModelConfig, task: TaskConfig, dtype: DTypeLike, freeze: int = 0, kernels: Kernels = OURS
) -> Task[LabelledBatch]:
    """Return the task of predicting the targets in the batch; `freeze` leaves that many layers, and the table, alone.

    `kernels` compute the attention while learning. Equal arguments give the same functions, as `make_logits` does too,
    so that a process compiles them once.

    Raises:
        UserError: there are not so many layers, or they share their parameters.
    """
    logits = make_logits(model, task, dtype, kernels)
    fixed = _first_layers(model, freeze) if freeze else None

    def prepare(
        batch: LabelledBatch, keys: Key[Array, " B"], step: Int[Array, ""], horizon: Int[Array, ""]
    ) -> LabelledBatch:
        del keys, step, horizon
        return batch

    def metrics_of(params: Params, batch: LabelledBatch, drop_keys: Key[Array, " B"] | None) -> Metrics:
        if fixed is not None:
            params = jax.tree.map(lambda x, stays: jax.lax.stop_gradient(x) if stays else x, params, fixed(params))
        if task.kind == "answer":
            return span_metrics(logits(params, batch, drop_keys), batch)
        targets, weights = jnp.asarray(batch.targets), jnp.asarray(batch.weights)
        return label_metrics(task.problem, logits(params, batch, drop_keys), targets, weights)

    def loss(
        params: Params, frozen: Params | None, batch: LabelledBatch, drop_keys: Key[Array, " B"] | None
    ) -> tuple[Float[Array, ""], Metrics]:
        del frozen
        metrics = metrics_of(params, batch, drop_keys)
        return metrics.loss_sum, metrics

    return Task(
        init=lambda key: init_task_params(model, task, key),
        prepare=prepare,
        loss=loss,
        examine=lambda params, batch: metrics_of(params, batch, None),
        scheduled=lambda step, horizon: {},
        targets=0,  # the vocabulary is not projected at all
        asked="tokens" if task.kind == "answer" or (task.kind, task.pooling) == ("classify", "mean") else "slots",
        fixed=fixed,
        cast=make_cast(model, dtype, tied=False),
    )


def _first_layers(model: ModelConfig, freeze: int) -> Callable[[Params], Params]:
    if not 0 <= freeze <= model.layers:
        raise UserError(f"--freeze {freeze}: the model has {model.layers} layers")
    if model.layer_groups and model.layer_groups < model.layers:
        raise UserError(f"--freeze {freeze}: the layers of this model share their parameters, so none stays alone")
    learned = {f"layer_{i}" for i in range(freeze, model.layers)} | {
        "final_norm",
        "head",
        "head_norm",
        "pooler",
        "classifier",
    }

    def fixed(params: Params) -> Params:
        return {name: jax.tree.map(lambda _, stays=name not in learned: stays, tree) for name, tree in params.items()}

    return fixed


# ---- targets and answers -------------------------------------------------------------------------


def targets_of(examples: Sequence[Example], task: TaskConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the targets [examples], or [examples, K] of several labels, and the weights: 0 where none is known."""
    known = np.array([example.label is not None for example in examples])
    numbers = {label: number for number, label in enumerate(task.labels)}
    if task.problem == "regression":
        values = np.array(
            [number_of(example) if example.label is not None else 0.0 for example in examples], np.float32
        )
    elif task.problem == "multi":
        known |= known.any()  # where others have labels, no label at all is an answer too
        values = np.zeros((len(examples), len(numbers)), np.float32)
        for row, example in zip(values, examples, strict=True):
            row[[numbers[label] for label in several(example.label)]] = 1
    else:
        values = np.array([numbers[one_label(e)] if e.label is not None else 0 for e in examples], np.int32)
    return values, known.astype(np.float32)


def class_weights(text: str, task: TaskConfig, targets: np.ndarray) -> np.ndarray:
    """Return the weight of each label, of 'balanced' (the rarer, the heavier) or of 'a=2,b=0.5' (others 1).

    Raises:
        UserError: the text is neither, names no label, or the problem has not one label for a text.
    """
    K = len(task.labels)
    if task.problem != "single":
        raise UserError(f"--class-weights is for texts of one label each, not for --problem {task.problem}")
    if text == BALANCED:
        counts = np.bincount(targets, minlength=K)
        return np.where(counts, len(targets) / (np.maximum(counts, 1) * K), 1.0).astype(np.float32)
    weights = np.ones(K, np.float32)
    for part in text.split(","):
        label, equals, value = part.rpartition("=")
        label = label.strip()
        try:
            weight = float(value)
        except ValueError:
            weight = -1.0
        if not equals or not 0 <= weight < np.inf:
            raise UserError(f"--class-weights {text}: write balanced, or label=weight,label=weight with weights from 0")
        if label not in task.labels:
            raise UserError(
                f"--class-weights: no label {label!r} (there are: {', '.join(task.labels[:20])})"
                f"{nearest(label, task.labels)}"
            )
        weights[task.labels.index(label)] = weight
    if not weights.any():
        raise UserError(f"--class-weights {text}: no label has a weight")
    return weights


def judged(task: TaskConfig, targets: np.ndarray, known: np.ndarray, logits: np.ndarray) -> Scores:
    """Return the scores of the logits [examples, K] where the target is known."""
    used = known > 0
    right, logits = targets[used], logits[used]
    match task.problem:
        case "regression":
            return of_numbers(right, logits[:, 0])
        case "multi":
            return of_several_labels(right > 0, logits > 0, task.labels)
        case "single":
            return of_one_label(right, logits.argmax(-1), task.labels)


def probabilities(task: TaskConfig, logits: np.ndarray) -> np.ndarray:
    """Return the probability of each label: they add up to 1 where one of them is right; numbers stay as they are."""
    logits = logits.astype(np.float64)
    if task.problem == "regression":
        return logits
    if task.problem == "multi":
        return 1 / (1 + np.exp(-logits))
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)
