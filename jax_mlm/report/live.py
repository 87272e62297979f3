"""Training, seen: a live panel at a terminal, plain lines now and then in a pipe or CI. On stderr."""

from __future__ import annotations

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

from jax_mlm.evals.samples import Answer, describe_answer, percent

SMOOTHING = 0.8
"""Weight of the past in the loss and accuracy that are shown: an exponential mean over the log lines."""
BARS = "▁▂▃▄▅▆▇█"


def at_terminal() -> bool:
    """Whether a person watches: CI systems that lend a terminal keep what is drawn on it, frame by frame."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


class Smooth:
    """Exponential mean that starts unbiased (Kingma & Ba 2014)."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> float:
        """Takes a value and returns the mean."""
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * value
        self._weight = SMOOTHING * self._weight + 1 - SMOOTHING
        return self._sum / self._weight


class Progress:
    """What one sees of a run while it trains."""

    def __init__(self, plain_every: float = 10.0) -> None:
        self._plain_every, self._said = plain_every, time.monotonic()
        self._console = Console(stderr=True, highlight=False)
        self._loss, self._accuracy = Smooth(), Smooth()
        self._losses: deque[float] = deque(maxlen=500)
        self._figures: dict[str, float] = {}
        self._step = self._total = self._next = 0
        self._left, self._updated = 0.0, time.monotonic()
        self._valid: tuple[int, float, float] | None = None
        self._answers: Sequence[Answer] = ()
        self._live: Live | None = None
        if at_terminal():
            self._live = Live(
                get_renderable=self._panel, console=self._console, refresh_per_second=2, redirect_stdout=False
            )

    def update(
        self, step: int, total: int, figures: Mapping[str, float], seconds_left: float, next_evaluation: int
    ) -> None:
        """Shows the state after `step` of `total`."""
        smooth = {"loss": self._loss.add(figures["loss"]), "accuracy": self._accuracy.add(figures["accuracy"])}
        self._figures = {**figures, **smooth}
        self._losses.append(figures["loss"])
        self._step, self._total, self._next = step, total, next_evaluation
        self._left, self._updated = seconds_left, time.monotonic()
        if self._live is not None:
            self._live.start()  # with the first figures; harmless when done again
        elif time.monotonic() - self._said >= self._plain_every:
            self._said = time.monotonic()
            self.say(f"step {step}/{total}  {describe(self._figures)}  {duration(seconds_left)} left")

    def evaluated(self, step: int, total: int, loss: float, accuracy: float, answers: Sequence[Answer]) -> None:
        """Shows a validation: a line that stays, and the answers to the samples."""
        self._valid, self._answers = (step, loss, accuracy), answers
        self.say(f"step {step}/{total}  valid loss {loss:.4f}  accuracy {accuracy:.4f}")
        if self._live is None:
            for answer in answers:
                self.say(f"  {describe_answer(answer)}")

    def say(self, text: str) -> None:
        """A line that stays, above the panel."""
        if self._live is not None:
            self._console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the panel as it is, and the terminal as it was; harmless when done twice."""
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
        now.append("  accuracy ").append(f"{figures.get('accuracy', float('nan')):.3f}", "bold cyan")
        now.append(f"  {figures.get('tokens_per_second', 0):,.0f} tokens/s")
        if "mfu" in figures:
            now.append(f"  mfu {figures['mfu']:.1%}")
        now.append(f"  {spark(self._losses, 24)}", "dim")
        valid = Text("no validation yet", "dim")
        if self._valid is not None:
            step, loss, accuracy = self._valid
            valid = Text.assemble("valid loss ", (f"{loss:.3f}", "bold green"), "  accuracy ")
            valid.append(f"{accuracy:.3f}", "bold green").append(f"  at step {step:,}")
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
    """One line for each sample: the words around the gap, and the likeliest ones, the right one in green."""
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


def gapped(answer: Answer, room: int) -> tuple[str, str, str]:
    """The text before the gap, [the right word], and the text behind it, cut to `room` characters around the gap."""
    before, after = answer.split
    gap = f"[{clipped(answer.right, 14)}]"
    spare = max(room - len(gap), 8)
    behind = min(len(after), max(spare - len(before), spare // 3))
    ahead = spare - behind
    before = before if len(before) <= ahead else "…" + before[len(before) - ahead + 1 :]
    return before, gap, clipped(after, behind)


def clipped(text: str, room: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= room else text[: max(room - 1, 0)] + "…"


def spark(values: Sequence[float], width: int) -> str:
    """The course of the values as `width` bars at most, the last ones at the right."""
    if len(values) < 2:
        return ""
    points = [values[i * (len(values) - 1) // (width - 1)] for i in range(width)] if len(values) > width else [*values]
    low, high = min(points), max(points)
    return "".join(BARS[round((p - low) / (high - low or 1.0) * (len(BARS) - 1))] for p in points)


def duration(seconds: float) -> str:
    """45 s, 3:07 min, 2:05 h, 3.1 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"
    if seconds < 172800:
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02} h"
    return f"{seconds / 86400:.1f} days"


TAUGHT = ("soft", "cosine")
"""What distillation adds to the figures of a step, a hidden token each: see `jax_mlm.distil`."""


def describe(figures: dict[str, float]) -> str:
    """Figures of the progress line."""
    mfu = f"  mfu {figures['mfu']:.1%}" if "mfu" in figures else ""
    more = "".join(f"  {name} {figures[name]:.3f}" for name in TAUGHT if name in figures)
    return (
        f"loss {figures['loss']:.3f}  accuracy {figures['accuracy']:.3f}{more}  "
        f"{figures['tokens_per_second']:,.0f} tokens/s{mfu}"
    )
