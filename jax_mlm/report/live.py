"""Monitoring on stderr: a live panel at a terminal, a plain line now and then in a pipe or CI."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jax_mlm.evals.samples import Answer
from jax_mlm.report.smoothing import ExponentialMean
from jax_mlm.report.words import clipped, describe, describe_answer, duration, gapped, percent, spark

SHOWN = 3
"""Most figures of a validation that the panel has room for."""


def at_terminal() -> bool:
    """Return whether a person is watching: CI systems with a terminal would log every frame drawn on it."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


class Progress:
    """The state of a run while it trains, for the person watching."""

    def __init__(self, plain_every: float = 10.0) -> None:
        self._plain_every, self._line_printed = plain_every, time.monotonic()
        self._console = Console(stderr=True, highlight=False)
        self._loss, self._accuracy = ExponentialMean(), ExponentialMean()
        self._losses: deque[float] = deque(maxlen=500)
        self._figures: dict[str, float] = {}
        self._step = self._total = self._next = self._skipped = 0
        self._left, self._updated = 0.0, time.monotonic()
        self._valid: tuple[int, Mapping[str, float]] | None = None
        self._answers: Sequence[Answer] = ()
        self._live: Live | None = None
        if at_terminal():
            self._live = Live(
                get_renderable=self._panel, console=self._console, refresh_per_second=2, redirect_stdout=False
            )

    def update(
        self, step: int, total: int, figures: Mapping[str, float], seconds_left: float, next_evaluation: int
    ) -> None:
        """Show the state after `step` of `total`."""
        self._skipped += int(figures.get("skipped", 0))
        if "loss" in figures:  # an update was not skipped since the last line
            smooth = {"loss": self._loss.add(figures["loss"])}
            if "accuracy" in figures:
                smooth["accuracy"] = self._accuracy.add(figures["accuracy"])
            self._figures = {**figures, **smooth}
            self._losses.append(figures["loss"])
        self._step, self._total, self._next = step, total, next_evaluation
        self._left, self._updated = seconds_left, time.monotonic()
        if self._live is not None:
            self._live.start()  # with the first figures; harmless when called again
        elif self._figures and time.monotonic() - self._line_printed >= self._plain_every:
            self._line_printed = time.monotonic()
            skipped = f"  {self._skipped:,} skipped" if self._skipped else ""
            self.say(f"step {step}/{total}  {describe(self._figures)}{skipped}  {duration(seconds_left)} left")

    def evaluated(self, step: int, total: int, figures: Mapping[str, float], answers: Sequence[Answer]) -> None:
        """Show a validation: a line that stays, and the answers to the samples."""
        self._valid, self._answers = (step, figures), answers
        shown = "  ".join(f"{name} {value:.4f}" for name, value in figures.items() if math.isfinite(value))
        self.say(f"step {step}/{total}  valid {shown}")
        if self._live is None:
            for answer in answers:
                self.say(f"  {describe_answer(answer)}")

    def say(self, text: str) -> None:
        """Print a line that stays, above the panel."""
        if self._live is not None:
            self._console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the panel on the screen and restore the terminal; harmless when called twice."""
        if self._live is not None:
            self._live.stop()

    def _panel(self) -> RenderableType:
        width = min(self._console.width, 100)
        left = max(self._left - (time.monotonic() - self._updated), 0.0) if self._step < self._total else 0.0
        share = self._step / max(self._total, 1)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(max(self._total, 1), self._step, width=max(width - 52, 8)),
            Text(f"step {self._step:,} of {self._total:,}  {share:.0%}  {duration(left)} left"),
        )
        figures = self._figures
        now = Text.assemble("loss ", (f"{figures.get('loss', float('nan')):.3f}", "bold cyan"))
        if "accuracy" in figures:
            now.append("  accuracy ").append(f"{figures['accuracy']:.3f}", "bold cyan")
        now.append(f"  {figures.get('tokens_per_second', 0):,.0f} tokens/s")
        if "mfu" in figures:
            now.append(f"  mfu {figures['mfu']:.1%}")
        now.append(f"  {spark(self._losses, 24)}", "dim")
        if self._skipped:
            now.append(f"  {self._skipped:,} skipped", "yellow")
        valid = Text("no validation yet", "dim")
        if self._valid is not None:
            step, measured = self._valid
            valid = Text("valid")
            for name, value in list(measured.items())[:SHOWN]:
                valid.append(f"  {name} " if len(valid) > 5 else f" {name} ").append(f"{value:.3f}", "bold green")
            valid.append(f"  at step {step:,}")
        if self._step < self._next < self._total:
            valid.append(f"  next at step {self._next:,}", "dim")
        rows: list[RenderableType] = [bar, now, valid]
        if self._answers:
            rows += [Text(""), samples_table(self._answers, width - 4)]
        for row in rows:
            if isinstance(row, Text):
                row.no_wrap, row.overflow = True, "ellipsis"
        return Panel(Group(*rows), border_style="dim", width=width)


def samples_table(answers: Sequence[Answer], width: int) -> Table:
    """Return one line for each sample: the words around the gap, and the top predictions, the right one in green."""
    table = Table.grid(padding=(0, 2), expand=False)
    best = min(3 if width >= 90 else 2 if width >= 60 else 1, max((len(a.candidates) for a in answers), default=0))
    room = max(width - 18 * best - 2, 16)
    for _ in range(1 + best):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for answer in answers:
        cells = [
            Text(f"{clipped(word, 11)} {percent(probability)}", "green" if word == answer.right else "")
            for word, probability in answer.candidates[:best]
        ]
        before, gap, after = gapped(answer, room)
        table.add_row(Text.assemble(before, (gap, "bold"), after), *cells)
    return table
