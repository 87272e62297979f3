"""Runs side by side: figures, options that differ, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jax_mlm.config import Json
from jax_mlm.report.charts import Chart, Series, Unit, figure
from jax_mlm.report.markup import page, table, text_of
from jax_mlm.report.picture import picture
from jax_mlm.report.smoothing import smoothed
from jax_mlm.report.summary import Axis, Summary, flat, summarise

INCIDENTAL = {"--out", "--resume", "--track", "--cache", "--workers", "--log-every"}
"""Options that do not affect the figures; they are not listed as differences."""

AXES: tuple[tuple[Axis, str, Unit], ...] = (
    ("step", "step", "number"),
    ("tokens", "training tokens", "number"),
    ("seconds", "time", "time"),
)
PIPE_WIDTH = 120
"""Width of the tables when the output is not a terminal."""


def compare(paths: Sequence[Path]) -> tuple[list[Summary], list[Json], dict[str, list[object]]]:
    """Return the runs, a row of figures for each, and the options that differ, each with its value in every run."""
    runs = [summarise(path) for path in paths]
    rows = [figures_of(name, run) for name, run in zip(names(paths), runs, strict=True)]
    return runs, rows, differences([flat(run.config) for run in runs])


def names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each run: that of its folder, or the whole path where two folders share a name."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def figures_of(name: str, run: Summary) -> Json:
    """Return the figures of one run; None for what was not measured."""
    best = run.best or {}
    return {
        "run": name,
        "steps": run.steps,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "tokens_per_second": run.tokens_per_second,
        "best_loss": best.get("loss"),
        "best_accuracy": best.get("accuracy"),
        "best_step": best.get("step"),
        "finished": run.final is not None,
    }


def differences(configs: Sequence[Json]) -> dict[str, list[object]]:
    """Return the options that differ, each with its value in every run; None if a run lacks the option."""
    every = dict.fromkeys(name for config in configs for name in config)
    listed = [name for name in every if name not in INCIDENTAL]
    values: dict[str, list[object]] = {name: [config.get(name) for config in configs] for name in listed}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}


def cells(row: Json) -> list[str]:
    """Return a row of figures as text."""

    def shown(key: str, form: str) -> str:
        return "–" if row[key] is None else format(row[key], form)

    return [
        row["run"] + ("" if row["finished"] else " (not finished)"),
        shown("steps", ","),
        shown("tokens", ","),
        shown("seconds", ",.1f"),
        shown("tokens_per_second", ",.0f"),
        shown("best_loss", ".4f"),
        shown("best_accuracy", ".4f"),
        shown("best_step", ","),
    ]


HEADER = ("run", "steps", "tokens", "seconds", "tokens/s", "best valid loss", "accuracy there", "at step")


def print_tables(rows: Sequence[Json], different: Mapping[str, Sequence[object]]) -> None:
    """Print the figures, the best loss in bold, and the options that differ."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(PIPE_WIDTH, 24 * (len(rows) + 1)))
    figures = Table(box=None, pad_edge=False)
    for number, name in enumerate(HEADER):
        figures.add_column(name, justify="right" if number else "left", overflow="fold")
    losses = [row["best_loss"] for row in rows if row["best_loss"] is not None]
    for row in rows:
        best = losses and row["best_loss"] == min(losses)
        figures.add_row(*cells(row), style="bold" if best and len(rows) > 1 else "")
    console.print(figures)
    if not different:
        console.print("\nall options are the same")
        return
    options = Table(box=None, pad_edge=False)
    for name in ("option", *(row["run"] for row in rows)):
        options.add_column(name, overflow="fold")
    for name, values in different.items():
        options.add_row(name, *map(text_of, values))
    console.print("\noptions that differ")
    console.print(options)


def comparison_page(runs: Sequence[Summary], rows: Sequence[Json], different: Mapping[str, Sequence[object]]) -> str:
    """Return one self-contained page: the tables, and the curves by step, tokens and time."""
    called = [row["run"] for row in rows]
    parts = [f"<h1>{escape(' · '.join(called))}</h1>", '<p class="quiet">Comparison of runs</p>']
    parts += ["<h2>Figures</h2>", table(HEADER, map(cells, rows))]
    for axis, label, unit in AXES:
        if axis == "tokens" and any(run.tokens is None for run in runs):
            continue  # a run from before tokens were counted
        drawn = [
            figure(Chart(title, overlay(called, runs, kind, key, axis), label, unit))
            for title, kind, key in (
                ("validation loss", "valid", "loss"),
                ("validation accuracy", "valid", "accuracy"),
                ("training loss, smoothed", "train", "loss"),
            )
        ]
        parts.append(f'<h2>By {escape(label)}</h2><div class="charts">{"".join(drawn)}</div>')
    parts.append("<h2>Options that differ</h2>")
    listed = [(name, *map(text_of, values)) for name, values in different.items()]
    parts.append(table(("option", *called), listed) if listed else "<p>All options are the same.</p>")
    return page(f"{', '.join(called)} · jax_mlm", "\n".join(parts))


def overlay(called: Sequence[str], runs: Sequence[Summary], kind: str, key: str, axis: Axis) -> list[Series]:
    """Return the same curve of every run."""
    out = []
    for number, (name, run) in enumerate(zip(called, runs, strict=True)):
        if kind == "valid":
            out.append(Series(name, run.curve(run.valid, key, axis), number, "dots"))
        else:
            out.append(Series(name, smoothed(run.curve(run.train, key, axis)), number))
    return out


def comparison_picture(called: Sequence[str], runs: Sequence[Summary]) -> str:
    """Return validation loss and accuracy by step and by time, as one SVG file."""
    charts = [
        Chart(f"validation {key}", overlay(called, runs, "valid", key, axis), label, unit)
        for key in ("loss", "accuracy")
        for axis, label, unit in AXES
        if axis != "tokens"
    ]
    return picture("Validation loss and accuracy", charts, columns=2)
