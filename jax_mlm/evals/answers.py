"""Examples laid out for a task, the scores of their logits, and the answers in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tokenizers import Tokenizer

from jax_mlm.config import Json, ModelConfig, TaskConfig, TrainConfig
from jax_mlm.data.align import Unit, Windows, lay_texts, lay_words
from jax_mlm.data.labelled import LabelledBatch, LabelledRows, pack_windows
from jax_mlm.data.labels import Example
from jax_mlm.data.spans import Asked, lay_questions
from jax_mlm.data.tokenizer import vocabulary_of
from jax_mlm.evals.heldout import Result, result_of
from jax_mlm.evals.labelled import item_logits
from jax_mlm.model.encoder import Params
from jax_mlm.tasks.classify import judged, label_metrics, make_logits, probabilities, targets_of
from jax_mlm.tasks.questions import Found, agreement, best_answer, of_answers, window_losses
from jax_mlm.tasks.scores import Scores
from jax_mlm.tasks.tagging import entities, judged_tags, shown, tag_targets

METRICS = jax.jit(label_metrics, static_argnums=0)
AT_ONCE = 32
"""Rows computed at once."""


@dataclass(frozen=True)
class Laid:
    """Examples, their windows, and what is right for each item."""

    examples: Sequence[Example]
    windows: Windows
    units: Sequence[Sequence[Unit]]
    """The words of each example, to tag."""
    targets: np.ndarray
    known: np.ndarray
    """[items] 1 where the target is known."""
    weights: np.ndarray
    """[items] in the loss."""
    remarks: tuple[str, ...]
    asked: Asked | None = None
    """The windows of questions, to find answers."""

    def weighted(self, of_label: np.ndarray) -> Laid:
        """Return the same with the weight of each item's label."""
        return replace(self, weights=self.known * of_label[self.targets])

    def rows(self, length: int, pad: int, seed: int = 0) -> LabelledRows:
        """Pack the windows into rows."""
        return pack_windows(self.windows, self.targets, self.weights, length, pad, seed)

    def measured(self, task: TaskConfig, logits: np.ndarray) -> tuple[Result, Scores]:
        """Return the loss of the logits, weighted as in training, and the scores."""
        if self.asked is not None:
            return self._measured_answers(self.asked, task, logits)
        part = (jnp.asarray(logits)[None], jnp.asarray(self.targets)[None], jnp.asarray(self.weights)[None])
        loss = result_of(METRICS(task.problem, *part))
        if task.kind == "tag":
            return loss, judged_tags(task, self.examples, self.units, logits)
        return loss, judged(task, self.targets, self.known, logits)

    def _measured_answers(self, asked: Asked, task: TaskConfig, logits: np.ndarray) -> tuple[Result, Scores]:
        losses = window_losses(logits, asked.windows.first, self.targets)
        found = found_answers(task, asked, logits)
        known = [(e, each) for e, each in zip(self.examples, found, strict=True) if e.answers is not None]
        scores = of_answers([references(e) for e, _ in known], [_text(e, each) or "" for e, each in known])
        right = scores.figures["exact"] * self.weights.sum()
        return Result(float(losses @ self.weights), float(right), float(self.weights.sum())), scores


def lay_out(tokenizer: Tokenizer, examples: Sequence[Example], task: TaskConfig, length: int) -> Laid:
    """Return the examples as windows of at most `length` tokens, with their targets."""
    if task.kind == "tag":
        windows, remarks, units = lay_words(tokenizer, examples, length, task.overlap)
        targets, known, more = tag_targets(examples, units, task)
        return Laid(examples, windows, units, targets, known, known, (*remarks, *more))
    if task.kind == "answer":
        asked = lay_questions(tokenizer, examples, length, task.overlap)
        none = [] if task.no_answer else [example.where for example in examples if example.answers == ()]
        more = (
            f"{len(none)} questions have no answer (the first: {none[0]}), but the model learns that each has one"
            if none
            else ""
        )
        remarks = (*asked.remarks, *filter(None, (more,)))
        return Laid(examples, asked.windows, (), asked.targets, asked.known, asked.known, remarks, asked)
    windows, remarks, _ = lay_texts(tokenizer, examples, task.pair, length, task.overlap)
    targets, known = targets_of(examples, task)
    return Laid(examples, windows, (), targets, known, known, remarks)


def predicted(
    config: TrainConfig, task: TaskConfig, tokenizer: Tokenizer, params: Params, examples: Sequence[Example]
) -> tuple[Laid, np.ndarray]:
    """Return examples, laid out in rows as the run has them, and the logits of their items or tokens, in float32.

    What else is in a batch or a row changes no logit by more than rounding.
    """
    length = config.corpus.length
    laid = lay_out(tokenizer, examples, task, length)
    rows = laid.rows(length, vocabulary_of(tokenizer).pad)
    logits = partial(_logits, config.model, task)
    return laid, item_logits(logits, jax.device_put(params), rows, task, min(AT_ONCE, len(rows)), lambda x: x)


@partial(jax.jit, static_argnums=(0, 1))
def _logits(model: ModelConfig, task: TaskConfig, params: Params, batch: LabelledBatch) -> Array:
    return make_logits(model, task, jnp.float32)(params, batch)


def found_answers(task: TaskConfig, asked: Asked, logits: np.ndarray) -> list[Found]:
    """Return the answer to each question, over all windows of its context, of the logits [tokens, 2]."""
    first = asked.windows.first
    window = np.repeat(np.arange(len(asked.owners)), np.diff(first))
    null = logits[first[:-1]].sum(-1)
    own = np.searchsorted(asked.owners, np.arange(len(asked.sizes) + 1))
    found = []
    for low, high in itertools.pairwise(own):
        here = slice(first[low], first[high])
        parts = (logits[here, 0], logits[here, 1], window[here], asked.offsets[here], asked.inside[here])
        found.append(best_answer(*parts, null[low:high], task.max_answer, task.no_answer))
    return found


def references(example: Example) -> list[str]:
    """Return the texts of the answers to a question."""
    return [example.text[start:end] for start, end in example.answers or ()]


def _text(example: Example, found: Found) -> str | None:
    return None if found.span is None else example.text[slice(*found.span)]


def answers(task: TaskConfig, laid: Laid, logits: np.ndarray) -> Iterator[Json]:
    """Yield the fields of each example's row, and the prediction, under names that the row does not have."""
    chances = probabilities(task, logits)
    spans = found_answers(task, laid.asked, logits) if laid.asked is not None else []
    at = 0
    for number, example in enumerate(laid.examples):
        found: Json = {}
        if spans:
            start, end = spans[number].span or (None, None)
            found |= {"prediction": _text(example, spans[number]), "start": start, "end": end}
            found["probability"] = round(spans[number].probability, 6)
        elif task.kind == "tag":
            if "text" not in (example.row or {}):
                found["text"] = example.text  # what the offsets refer to
            words = laid.units[number]
            found["entities"] = [
                shown(entity, example.text) for entity in entities(task, words, logits[at : at + len(words)])
            ]
            at += len(words)
        elif task.problem == "regression":
            found["prediction"] = round(float(chances[number, 0]), 6)
        else:
            order = np.argsort(-chances[number], kind="stable")
            ranked = [{"label": task.labels[i], "probability": round(float(chances[number, i]), 6)} for i in order]
            if task.problem == "multi":
                found["predictions"] = [each["label"] for each in ranked if each["probability"] > 0.5]
            else:
                found |= {"prediction": ranked[0]["label"], "probability": ranked[0]["probability"]}
            found["probabilities"] = {each["label"]: each["probability"] for each in ranked}
        row = dict(example.row or {})
        yield row | {_free(name, row): value for name, value in found.items()}


def _free(name: str, row: Json) -> str:
    """Return a name that the row does not have."""
    return name if name not in row else _free(f"predicted_{name}", row)


def worst(task: TaskConfig, laid: Laid, logits: np.ndarray, count: int = 10) -> list[Json]:
    """Return the examples with the largest loss: those that the model is most wrong about."""
    loss = _losses(task, laid, logits)
    order = [int(i) for i in np.argsort(-loss, kind="stable")[:count] if loss[i] > 0]
    every = list(answers(task, replace(laid, examples=[replace(each, row=None) for each in laid.examples]), logits))
    return [{**_short(task, laid.examples[i], every[i]), "loss": round(float(loss[i]), 4)} for i in order]


def _losses(task: TaskConfig, laid: Laid, logits: np.ndarray) -> np.ndarray:
    """Return the loss of each example: of its windows the mean, and 0 where the question is answered exactly."""
    if laid.asked is not None:
        losses = window_losses(logits, laid.windows.first, laid.targets) * laid.known
        count = len(laid.examples)
        sums, windows = (np.bincount(laid.asked.owners, each, count) for each in (losses, laid.known))
        found = found_answers(task, laid.asked, logits)
        texts = [_text(example, each) or "" for example, each in zip(laid.examples, found, strict=True)]
        missed = [agreement(references(e), text).exact < 1 for e, text in zip(laid.examples, texts, strict=True)]
        return sums / np.maximum(windows, 1) * missed
    loss = np.asarray(_each_loss(task.problem, logits, laid.targets, laid.known))
    if task.kind == "tag":
        ends = np.cumsum([0, *map(len, laid.units)])
        loss = np.array([loss[a:b].sum() for a, b in itertools.pairwise(ends)])
    return loss


@partial(jax.jit, static_argnums=0)
def _each_loss(problem: str, logits: Array, targets: Array, known: Array) -> Array:
    return jax.vmap(lambda *part: label_metrics(problem, *(x[None, None] for x in part)).loss_sum)(
        logits, targets, known
    )


def always(task: TaskConfig, laid: Laid, logits: np.ndarray) -> str | None:
    """Return what every prediction is, if it is always the same label, or no answer."""
    if laid.asked is not None:
        nothing = all(found.span is None for found in found_answers(task, laid.asked, logits))
        return "no answer" if nothing else None
    best = set(map(int, logits.argmax(-1)))
    return task.labels[best.pop()] if len(best) == 1 and task.problem == "single" else None


def _short(task: TaskConfig, example: Example, answer: Json) -> Json:
    right: object = example.label
    if task.kind == "tag":
        right = [{"label": span.label, "text": example.text[span.start : span.end]} for span in example.spans or ()]
    elif task.kind == "answer":
        right = [*dict.fromkeys(references(example))]
    said = answer.get("entities", answer.get("predictions", answer.get("prediction")))
    if task.kind == "tag":
        said = [{"label": each["label"], "text": each["text"]} for each in answer["entities"]]
    text = example.text if example.pair is None else f"{example.text} ∥ {example.pair}"
    if task.kind == "answer":
        text = f"{example.pair} ∥ {example.text}"
    return {"where": example.where, "text": text[:300], "right": right, "predicted": said}
