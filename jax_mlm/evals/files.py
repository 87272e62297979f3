"""Measure a fine-tuned run on a file of examples, and write its answers."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jax_mlm.config import Json, TaskConfig, TrainConfig
from jax_mlm.data.examples import read_file
from jax_mlm.data.labels import Columns, Example, check_labels
from jax_mlm.data.tokenizer import load_tokenizer
from jax_mlm.errors import UserError
from jax_mlm.evals.answers import Laid, answers, predicted
from jax_mlm.evals.heldout import Result
from jax_mlm.files import make_folder, write_atomically
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import TOKENIZER_FILE
from jax_mlm.tasks.scores import Scores
from jax_mlm.tasks.tagging import check_types


class Evaluated(NamedTuple):
    """What a run makes of a file."""

    step: int
    laid: Laid
    logits: np.ndarray
    measured: tuple[Result, Scores] | None
    """None where no example has a label."""
    labelled: int
    """Number of examples that have one."""
    remarks: tuple[str, ...]


def evaluate_file(
    run: Path,
    config: TrainConfig,
    task: TaskConfig,
    file: str,
    checkpoint: Literal["best", "latest"],
    columns: tuple[str, str, str],
    predictions: str,
) -> Evaluated:
    """Read a file as the run's training file was read, and answer for each example; labels may be missing.

    `columns` names those of the text, the pair and the label where they differ from the training file's, and
    `predictions` the file to write, which is checked before anything is computed.

    Raises:
        UserError: the file is wrong, has a label that the run did not learn, or none though nothing is predicted.
    """
    named = columns_of(run, task, columns)
    examples, _, remarks = read_file(task.kind, Path(file), named, unlabelled=True)
    check_examples(examples, task)
    labelled = sum(is_labelled(example, task) for example in examples)
    if predictions:
        check_predictions(Path(predictions))
    elif not labelled:
        raise UserError(f"--data {file} has no labels: give --predictions FILE for the answers")
    step, params = load_params(run, checkpoint)
    laid, logits = predicted(config, task, load_tokenizer(run / TOKENIZER_FILE), params, examples)
    measured = laid.measured(task, logits) if labelled else None
    return Evaluated(step, laid, logits, measured, labelled, (*remarks, *laid.remarks))


def columns_of(run: Path, task: TaskConfig, given: tuple[str, str, str]) -> Columns:
    """Return the columns of a file for a run: those given, else those of the file that it learned.

    Raises:
        UserError: a second text is named that the run does not read, or not named though it reads one.
    """
    named = Columns(*(one or learned for one, learned in zip(given, task.columns, strict=True)))
    if task.kind == "classify" and task.pair and not named.pair:
        raise UserError(f"{run} judges two texts together: name the column of the second with --pair")
    if task.kind == "classify" and named.pair and not task.pair:
        imported = "" if any(task.columns) else "; if the model was trained on pairs, import it with --pair COLUMN"
        raise UserError(f"--pair {named.pair}: {run} judges one text: leave it out{imported}")
    return named


def check_examples(examples: Sequence[Example], task: TaskConfig) -> None:
    """Refuse a label that was not learned, by its line."""
    if task.kind == "tag":
        check_types(examples, task.labels)
    elif task.kind == "classify":
        check_labels(examples, task.labels, task.problem, unlabelled=True)


def is_labelled(example: Example, task: TaskConfig) -> bool:
    """Return whether it is known what is right for the example."""
    known = {"classify": example.label, "tag": example.spans, "answer": example.answers}
    return known[task.kind] is not None


def write_predictions(path: Path, task: TaskConfig, found: Evaluated) -> None:
    """Write a JSON line for each example."""
    write_lines(path, answers(task, found.laid, found.logits))


def check_predictions(path: Path) -> None:
    """Refuse a --predictions that is a folder, or has a parent that cannot be made, before anything is computed."""
    if path.is_dir():
        raise UserError(f"--predictions {path} is a folder: give a file")
    make_folder(path.parent, "--predictions")


def write_lines(path: Path, lines: Iterable[Json]) -> None:
    """Write --predictions: JSON lines."""
    content = "".join(_line(line) for line in lines)
    make_folder(path.parent, "--predictions")
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"--predictions {path}: cannot be written ({error.strerror})") from None


def _line(row: Json) -> str:
    """Return a row as a line of JSON; the fields of Parquet that it echoes may hold values that JSON cannot express.

    Dates and times are written as ISO 8601 has them, other such values as text, and NaN as null.
    """
    line = json.dumps(row, ensure_ascii=False, default=_in_words)
    if "NaN" in line or "Infinity" in line:
        plain = json.loads(line, parse_constant=lambda name: None if name == "NaN" else name)
        line = json.dumps(plain, ensure_ascii=False)
    return line + "\n"


def _in_words(value: object) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
