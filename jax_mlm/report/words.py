"""Figures, texts and answers, formatted for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jax_mlm.evals.samples import Answer

BARS = "▁▂▃▄▅▆▇█"
DISTILLED = ("soft", "cosine")
"""Figures that distillation adds to those of a step, per masked token: see `jax_mlm.tasks.distil`."""


def percent(probability: float) -> str:
    """Return a probability in percent: 83%, <1%."""
    return "<1%" if probability < 0.005 else f"{probability:.0%}"


def duration(seconds: float) -> str:
    """Return a time in the unit that fits it: 45 s, 3:07 min, 2:05 h, 3.1 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"
    if seconds < 172800:
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02} h"
    return f"{seconds / 86400:.1f} days"


def clipped(text: str, room: int) -> str:
    """Return the text, or its beginning and an ellipsis if it is too long."""
    return text if len(text) <= room else text[: max(room - 1, 0)] + "…"


def gapped(answer: Answer, room: int) -> tuple[str, str, str]:
    """Return the text before the gap, [the right word], and the text after it, cut to `room` characters around it."""
    before, after = answer.split
    gap = f"[{clipped(answer.right, 14)}]"
    spare = max(room - len(gap), 8)
    tail = min(len(after), max(spare - len(before), spare // 3))
    head = spare - tail
    before = before if len(before) <= head else "…" + before[len(before) - head + 1 :]
    return before, gap, clipped(after, tail)


def spark(values: Sequence[float], width: int) -> str:
    """Return the values as a sparkline of at most `width` bars, the latest on the right."""
    if len(values) < 2:
        return ""
    points = [values[i * (len(values) - 1) // (width - 1)] for i in range(width)] if len(values) > width else [*values]
    low, high = min(points), max(points)
    return "".join(BARS[round((p - low) / (high - low or 1.0) * (len(BARS) - 1))] for p in points)


def describe(figures: Mapping[str, float]) -> str:
    """Return the figures of a progress line."""
    mfu = f"  mfu {figures['mfu']:.1%}" if "mfu" in figures else ""
    accuracy = f"  accuracy {figures['accuracy']:.3f}" if "accuracy" in figures else ""
    more = "".join(f"  {name} {figures[name]:.3f}" for name in DISTILLED if name in figures)
    return f"loss {figures['loss']:.3f}{accuracy}{more}  {figures['tokens_per_second']:,.0f} tokens/s{mfu}"


def describe_answer(answer: Answer) -> str:
    """Return one plain line: the text, the top predictions, the right word."""
    best = ", ".join(f"{word} {percent(probability)}" for word, probability in answer.candidates)
    return f"{answer.text}  → {best}  (right: {answer.right} {percent(answer.probability)})"
