"""What config.json says of a fine-tuned model: its class, its labels in order, and the problem it solves."""

from __future__ import annotations

import re
from typing import Literal

from jax_mlm.config import Family, Json, TaskConfig
from jax_mlm.errors import UserError

CLASSES = {
    "classify": "ForSequenceClassification",
    "tag": "ForTokenClassification",
    "answer": "ForQuestionAnswering",
}
"""Task → the ending of transformers' class."""
PIPELINES = {"classify": "text-classification", "tag": "token-classification", "answer": "question-answering"}
"""Task → transformers' name of it."""
LONGEST, IMPOSSIBLE = "max_answer_len", "handle_impossible_answer"
"""What transformers' pipeline calls the most tokens of an answer, and whether there may be none."""
PAIR = "pair"
"""Whether a classifier judges two texts together; transformers has no name for it."""
USUAL = 30
"""Most tokens of an answer where config.json says nothing about it."""
TAG = re.compile(r"O|[BI]-\S.*")
PROBLEMS: dict[str, Literal["single", "multi", "regression"]] = {
    "single_label_classification": "single",
    "multi_label_classification": "multi",
    "regression": "regression",
}
MASKED = "ForMaskedLM"
MOST = 100_000
"""Labels of the largest head that a config.json may ask for."""


def check_family(family: Family, kind: str, what: str) -> None:
    """Refuse a task for which transformers has no class of the family."""
    if family == "esm" and kind == "answer":
        raise UserError(
            f"{what} is ESM-2, a model of proteins, for which transformers has no head that answers questions: "
            "take another encoder"
        )


def with_task(values: Json, task: TaskConfig) -> Json:
    """Return the config.json of a masked language model as that of a model with the task's head."""
    labels = task.labels or ("LABEL_0",)
    (architecture,) = values["architectures"]
    architectures = [architecture.removesuffix(MASKED) + CLASSES[task.kind]]
    if task.kind == "answer":
        limits = {LONGEST: task.max_answer, IMPOSSIBLE: task.no_answer}
        return {**values, "architectures": architectures, "task_specific_params": {PIPELINES["answer"]: limits}}
    found: Json = {
        **values,
        "architectures": architectures,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if task.kind == "classify":
        if task.pair:
            found["task_specific_params"] = {PIPELINES["classify"]: {PAIR: True}}
        found["problem_type"] = next(theirs for theirs, ours in PROBLEMS.items() if ours == task.problem)
        if values["model_type"] == "modernbert":
            found["classifier_pooling"] = task.pooling
    return found


def task_of(values: Json) -> TaskConfig | None:
    """Return the task of the model that a config.json describes; None for a masked language model or an encoder.

    Raises:
        UserError: the labels are not numbered from 0, two have one name, or those of words are not tags of entities.
    """
    given = values.get("architectures")
    architecture = str(given[0]) if isinstance(given, list) and given else ""
    kind = next((kind for kind, ending in CLASSES.items() if architecture.endswith(ending)), None)
    if kind is None:
        return None
    labels = _labels(values)
    if kind == "answer":
        return _answering(values, labels)
    theirs = values.get("problem_type")
    if theirs is not None and theirs not in PROBLEMS:
        raise UserError(f"problem_type is {str(theirs)[:80]!r}, where one of {', '.join(PROBLEMS)} was expected")
    problem = PROBLEMS[theirs] if theirs else "regression" if len(labels) == 1 and kind == "classify" else "single"
    pooling = pooling_of(values)
    if kind == "tag":
        check_tags(labels)
        return TaskConfig("tag", labels, metric="f1")
    if problem == "regression" and len(labels) > 1:
        raise UserError(f"problem_type is 'regression' with {len(labels)} labels: only one number is supported")
    metric = {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}[problem]
    names = () if problem == "regression" else labels
    pair = _flag(_params(values, "classify"), PAIR)
    return TaskConfig("classify", names, problem, pair, pooling, metric=metric)


def check_tags(labels: tuple[str, ...]) -> None:
    """Refuse labels of words that are not O, B-TYPE and I-TYPE, as parts of speech and BIOES are not."""
    wrong = next((label for label in labels if not TAG.fullmatch(label)), None)
    if wrong is not None or "O" not in labels:
        what = "no label O"
        if wrong is not None:
            what = f"the label {wrong[:80]!r}, which is neither O nor like B-person or I-person"
        raise UserError(
            f"id2label has {what}: only taggers of entities in IOB are read; to train one from this encoder: "
            "python -m jax_mlm.finetune --init HF_DIR --task tag"
        )


def pooling_of(values: Json) -> Literal["cls", "mean"]:
    """Return what stands for a text in the model that a config.json describes; only ModernBERT has the choice."""
    pooling = values.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise UserError(f"classifier_pooling is {str(pooling)[:80]!r}, where 'cls' or 'mean' was expected")
    return "mean" if pooling == "mean" and values.get("model_type") == "modernbert" else "cls"


def _answering(values: Json, labels: tuple[str, ...]) -> TaskConfig:
    """Return the task of finding answers."""
    if values.get("model_type") == "esm":
        check_family("esm", "answer", "the model")
    if len(labels) != 2:
        raise UserError(f"{len(labels)} labels, where a model that answers questions has 2 logits for each token")
    limits = _params(values, "answer")
    longest, impossible = limits.get(LONGEST, USUAL), _flag(limits, IMPOSSIBLE)
    if type(longest) is not int or not 1 <= longest <= MOST:
        raise UserError(f"{LONGEST} is {str(longest)[:80]!r}, where a number of tokens was expected")
    return TaskConfig("answer", pair=True, metric="f1", max_answer=longest, no_answer=impossible)


def _params(values: Json, kind: str) -> Json:
    """Return what a config.json says for the pipeline of a task."""
    params = values.get("task_specific_params")
    given = params.get(PIPELINES[kind]) if isinstance(params, dict) else None
    return given if isinstance(given, dict) else {}


def _flag(params: Json, name: str) -> bool:
    flag = params.get(name, False)
    if not isinstance(flag, bool):
        raise UserError(f"{name} is {str(flag)[:80]!r}, where true or false was expected")
    return flag


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
