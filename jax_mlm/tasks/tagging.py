"""Words and their tags: the tags to learn, those predicted, and the entities that they make up."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_mlm.config import TaskConfig
from jax_mlm.data.align import Unit, tags_of
from jax_mlm.data.conll import OUTSIDE, entities_of
from jax_mlm.data.labels import Example
from jax_mlm.errors import UserError, nearest
from jax_mlm.tasks.classify import probabilities
from jax_mlm.tasks.scores import Scores, of_entities


def types_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the types of the entities, sorted; a UserError if there is none to find."""
    found = sorted({span.label for example in examples for span in example.spans or ()})
    if not found:
        raise UserError(f"{examples[0].where}: from here on, no text has an entity: there is nothing to find")
    return tuple(found)


def tags_for(types: Sequence[str]) -> tuple[str, ...]:
    """Return the labels of a tagger: O, and B- and I- of each type."""
    return (OUTSIDE, *(f"{letter}-{kind}" for kind in types for letter in "BI"))


def check_types(examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Refuse an entity whose type was not learned, by its line."""
    types = [*dict.fromkeys(label[2:] for label in labels if label != OUTSIDE)]
    known = {*types}
    for example in examples:
        for span in example.spans or ():
            if span.label not in known:
                shown = repr(example.text[span.start : span.end][:60])
                raise UserError(
                    f"{example.where}: {shown} has the label {span.label!r}, which is not one of those learned: "
                    f"{', '.join(types[:20])}{nearest(span.label, types)}"
                )


def tag_targets(
    examples: Sequence[Example], units: Sequence[Sequence[Unit]], task: TaskConfig
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return the number of each word's tag, its weight (0 in a text without tags), and remarks."""
    tags, remarks = tags_of(examples, units)
    numbers = {label: number for number, label in enumerate(task.labels)}
    other = {f"{letter}-{label[2:]}": numbers[label] for label in task.labels if label != OUTSIDE for letter in "BI"}
    numbers = other | numbers  # a type may have but one of the two
    targets = np.array([numbers[tag] for mine in tags for tag in mine], np.int32)
    known = [[float(example.spans is not None)] * len(mine) for example, mine in zip(examples, tags, strict=True)]
    return targets, np.array([weight for mine in known for weight in mine], np.float32), remarks


class Entity(NamedTuple):
    """A part of a text with its type: `text[start:end]`, in code points."""

    label: str
    start: int
    end: int
    probability: float
    """Mean probability of the tags of its words."""


def entities(task: TaskConfig, units: Sequence[Unit], logits: np.ndarray) -> list[Entity]:
    """Return the entities in one text, from the logits of its words; as transformers' pipeline aggregates `first`."""
    best, chances = logits.argmax(-1), probabilities(task, logits).max(-1)
    found = entities_of([task.labels[i] for i in best])
    return [Entity(kind, units[a].start, units[b - 1].end, float(chances[a:b].mean())) for a, b, kind in found]


def judged_tags(
    task: TaskConfig, examples: Sequence[Example], units: Sequence[Sequence[Unit]], logits: np.ndarray
) -> Scores:
    """Return the scores of entities: over the words of the file where it has words, else over the tokenizer's."""
    types = {label[2:] for label in task.labels if label.startswith("B-")}
    right: list[list[str]] = []
    predicted: list[list[str]] = []
    gold, _ = tags_of(examples, units)
    at = 0
    for example, words, mine in zip(examples, units, gold, strict=True):
        tags = [task.labels[i] for i in logits[at : at + len(words)].argmax(-1)]
        at += len(words)
        if example.spans is None:
            continue
        if example.words:
            right.append(_of_file(example))
            predicted.append(_begun(_on_words(example, words, tags), types))
        else:
            right.append(mine)
            predicted.append(_begun(tags, types))
    return of_entities(right, predicted)


def _begun(tags: Sequence[str], types: Collection[str]) -> list[str]:
    """Return tags in which every entity of a type without B-, as none has it in IO, begins with B- all the same."""
    return [
        f"B-{tag[2:]}" if tag.startswith("I-") and tag[2:] not in types and tag != before else tag
        for before, tag in itertools.pairwise([OUTSIDE, *tags])
    ]


def _of_file(example: Example) -> list[str]:
    """Return the tags of the file's own words."""
    tags = [OUTSIDE] * len(example.words)
    first = {start: k for k, (start, _) in enumerate(example.words)}
    for span in example.spans or ():
        k, letter = first[span.start], "B"
        while k < len(tags) and example.words[k][1] <= span.end:
            tags[k], letter, k = f"{letter}-{span.label}", "I", k + 1
    return tags


def _on_words(example: Example, units: Sequence[Unit], tags: Sequence[str]) -> list[str]:
    """Return the tag of each of the file's words: that of the first of the tokenizer's words in it, O without one."""
    out, k = [], 0
    for start, end in example.words:
        while k < len(units) and (units[k].start < start or units[k].end <= units[k].start):
            k += 1
        out.append(tags[k] if k < len(units) and units[k].start < end else OUTSIDE)
    return out


def shown(entity: Entity, text: str) -> dict[str, Any]:
    """Return an entity as JSON has it."""
    return {
        "label": entity.label,
        "start": entity.start,
        "end": entity.end,
        "text": text[entity.start : entity.end],
        "probability": round(entity.probability, 6),
    }
