"""What config.json says of a fine-tuned model: its class, its labels in order, and the problem it solves."""

from __future__ import annotations

from typing import Literal

from jax_mlm.config import Json, TaskConfig
from jax_mlm.errors import UserError

CLASSES = {"classify": "ForSequenceClassification", "tag": "ForTokenClassification"}
"""Task → the ending of transformers' class."""
PIPELINES = {"classify": "text-classification", "tag": "token-classification"}
"""Task → transformers' name of it."""
PROBLEMS: dict[str, Literal["single", "multi", "regression"]] = {
    "single_label_classification": "single",
    "multi_label_classification": "multi",
    "regression": "regression",
}
MASKED = "ForMaskedLM"
MOST = 100_000
"""Labels of the largest head that a config.json may ask for."""


def with_task(values: Json, task: TaskConfig) -> Json:
    """Return the config.json of a masked language model as that of a model with the task's head."""
    labels = task.labels or ("LABEL_0",)
    (architecture,) = values["architectures"]
    found: Json = {
        **values,
        "architectures": [architecture.removesuffix(MASKED) + CLASSES[task.kind]],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if task.kind == "classify":
        found["problem_type"] = next(theirs for theirs, ours in PROBLEMS.items() if ours == task.problem)
        if values["model_type"] == "modernbert":
            found["classifier_pooling"] = task.pooling
    return found


def task_of(values: Json) -> TaskConfig | None:
    """Return the task of the model that a config.json describes; None for a masked language model or an encoder.

    Raises:
        UserError: the labels are not numbered from 0, or two have one name.
    """
    given = values.get("architectures")
    architecture = str(given[0]) if isinstance(given, list) and given else ""
    kind = next((kind for kind, ending in CLASSES.items() if architecture.endswith(ending)), None)
    if kind is None:
        return None
    labels = _labels(values)
    theirs = values.get("problem_type")
    if theirs is not None and theirs not in PROBLEMS:
        raise UserError(f"problem_type is {str(theirs)[:80]!r}, where one of {', '.join(PROBLEMS)} was expected")
    problem = PROBLEMS[theirs] if theirs else "regression" if len(labels) == 1 and kind == "classify" else "single"
    pooling = values.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise UserError(f"classifier_pooling is {str(pooling)[:80]!r}, where 'cls' or 'mean' was expected")
    if kind == "tag":
        return TaskConfig("tag", labels, metric="f1")
    if problem == "regression" and len(labels) > 1:
        raise UserError(f"problem_type is 'regression' with {len(labels)} labels: only one number is supported")
    mean = values.get("model_type") == "modernbert" and pooling == "mean"
    metric = {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}[problem]
    names = () if problem == "regression" else labels
    return TaskConfig("classify", names, problem, pooling="mean" if mean else "cls", metric=metric)


def _labels(values: Json) -> tuple[str, ...]:
    """Return the labels by their numbers; LABEL_0 and LABEL_1 where the config names none, as in transformers."""
    count = values.get("num_labels", 2)
    given = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(count if isinstance(count, int) else 2)}
    if not isinstance(given, dict) or not given or len(given) > MOST:
        raise UserError(f"id2label is {str(given)[:80]}, where an object of numbers and labels was expected")
    missing = next((i for i in range(len(given)) if str(i) not in given), None)
    if missing is not None:
        raise UserError(f"id2label has {len(given)} labels, but none with the number {missing}")
    labels = tuple(str(given[str(i)]) for i in range(len(given)))
    twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    if twice is not None:
        raise UserError(f"id2label gives two numbers the label {twice[:80]!r}")
    return labels
