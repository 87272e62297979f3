"""`scores.json`, and what it says in words: figures, each label's, who is taken for whom, and the worst mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jax_mlm.config import Json
from jax_mlm.errors import UserError
from jax_mlm.files import write_atomically
from jax_mlm.report.markup import table
from jax_mlm.run.directory import read_object
from jax_mlm.tasks.scores import Scores

SCORES_FILE = "scores.json"
MOST = 12
"""Labels up to which a confusion matrix is shown."""


def scores_json(file: str, examples: int, loss: float, scores: Scores, labels: Sequence[str]) -> Json:
    """Return the scores of a file as JSON has them."""
    found: Json = {"file": file, "examples": examples, "loss": loss, **scores.figures}
    if scores.per_label:
        found["per_label"] = {label: each._asdict() for label, each in scores.per_label.items()}
    if scores.confusion:
        found["confusion"] = {"labels": list(labels), "right_by_predicted": [list(row) for row in scores.confusion]}
    return found


def write_scores(run: Path, scores: Json) -> None:
    """Write the scores to the run directory, for the report page and for whoever compares runs."""
    write_atomically(run / SCORES_FILE, json.dumps(scores, indent=2, ensure_ascii=False) + "\n")


def read_scores(run: Path) -> Json | None:
    """Return what `write_scores` wrote; None if the run has not ended, or learned no task.

    Raises:
        UserError: the file was damaged.
    """
    path = run / SCORES_FILE
    if not path.is_file():
        return None
    remedy = "restore it from a copy, or remove it"
    scores = read_object(path, remedy)
    match scores:
        case {"metric": str(metric), "of": str(), "file": str(), "examples": int(), "choosing": {**choosing}} if (
            isinstance(scores.get(metric), float | int) and isinstance(choosing.get(metric), float | int)
        ):
            return scores
    raise UserError(f"{path} does not hold the scores of a run: {remedy}")


def figures_of(scores: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers among the scores."""
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def print_scores(scores: Json) -> None:
    """Print the figures, those of each label, and the confusion matrix of a few labels."""
    print("  " + "   ".join(f"{name} {value:.4f}" for name, value in figures_of(scores).items()))
    console = Console(width=None if Console().is_terminal else 110, highlight=False, markup=False)
    for title, rows in _tables(scores):
        grid = Table(box=None, pad_edge=False)
        for number, name in enumerate(title):
            grid.add_column(name, justify="right" if number else "left")
        for row in rows:
            grid.add_row(*row)
        console.print()
        console.print(grid)


def _tables(scores: Json) -> list[tuple[list[str], list[list[str]]]]:
    found = []
    if per_label := scores.get("per_label"):
        rows = [
            [label, *(f"{each[name]:.4f}" for name in ("precision", "recall", "f1")), str(each["support"])]
            for label, each in per_label.items()
        ]
        found.append((["label", "precision", "recall", "F1", "examples"], rows))
    confusion = scores.get("confusion")
    if confusion and len(confusion["labels"]) <= MOST:
        counts = zip(confusion["labels"], confusion["right_by_predicted"], strict=True)
        rows = [[label, *map(str, row)] for label, row in counts]
        found.append((["right \\ predicted", *confusion["labels"]], rows))
    return found


def scores_html(scores: Json) -> str:
    """Return the scores as a section of the report page."""
    figures = "   ".join(f"{name} {value:.4f}" for name, value in figures_of(scores).items())
    parts = [
        f'<h2>Scores</h2><p class="quiet">{escape(scores["of"])}: {escape(scores["file"])}, '
        f"{scores['examples']:,} examples</p><p>{escape(figures)}</p>"
    ]
    parts += [table([escape(name) for name in title], [tuple(row) for row in rows]) for title, rows in _tables(scores)]
    if worst := scores.get("worst"):
        rows = [
            (each["where"].rsplit(", ", 1)[-1], each["text"], _said(each["right"]), _said(each["predicted"]))
            for each in worst
        ]
        parts.append("<h2>Most wrong</h2>" + table(("line", "text", "right", "predicted"), rows))
    return "".join(parts)


def _said(answer: object) -> str:
    if isinstance(answer, list):
        return ", ".join(f"{e['text']} ({e['label']})" if isinstance(e, dict) else str(e) for e in answer) or "none"
    return "none" if answer is None else str(answer)
