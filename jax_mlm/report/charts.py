"""Line charts as SVG; their colours are classes that the page or file around them defines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Literal, NamedTuple

from jax_mlm.report.theme import COLOURS

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 10, 36
MOST_POINTS = 300
"""A longer curve is drawn through means of neighbours."""

Point = tuple[float, float]
Unit = Literal["number", "time"]


class Series(NamedTuple):
    """One curve: its name, its points in order, and how it looks."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    style: Literal["line", "faint", "dots"] = "line"


class Chart(NamedTuple):
    """Curves over common axes; the title names the y axis."""

    title: str
    series: Sequence[Series]
    x_label: str = "step"
    x_unit: Unit = "number"
    from_zero: bool = False


def named(chart: Chart) -> list[Series]:
    """Return the curves that belong in the legend: those with points, except faint ones."""
    return [s for s in chart.series if s.points and s.style != "faint"]


def dash(colour: int) -> str:
    """Return the attribute that dashes a curve whose colour is taken already."""
    return ' stroke-dasharray="5 3"' if colour >= COLOURS else ""


def marks(chart: Chart) -> str:
    """Return the contents of the <svg>, WIDTH by HEIGHT; points that are not finite are left out."""
    drawn = [s._replace(points=thinned([p for p in s.points if all(map(math.isfinite, p))])) for s in chart.series]
    drawn = [s for s in drawn if s.points]
    middle, x_label = (LEFT + WIDTH - RIGHT) / 2, chart.x_label
    if not drawn:
        return f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">nothing measured yet</text>'
    if chart.x_unit == "time":
        size, name = time_unit(max(x for s in drawn for x, _ in s.points))
        drawn = [s._replace(points=[(x / size, y) for x, y in s.points]) for s in drawn]
        x_label = f"{x_label} ({name})"
    xs, ys = zip(*(p for s in drawn for p in s.points), strict=True)
    x_ticks, y_ticks = ticks(min(0.0, *xs), max(xs)), ticks(min(0.0, *ys) if chart.from_zero else min(ys), max(ys))
    x0, x1 = x_ticks[0], max(xs)
    y0, y1 = y_ticks[0], y_ticks[-1]

    def x_at(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0 or 1) * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y0) / (y1 - y0 or 1) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(y):.1f}" y2="{y_at(y):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y_at(y) + 3.5:.1f}" text-anchor="end">{number(y)}</text>')
    for x in (x for x in x_ticks if x <= x1):
        parts.append(f'<text x="{x_at(x):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{number(x)}</text>')
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    for s in drawn:
        colour = f"c{s.colour % COLOURS}"
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in s.points)
        parts.append(f'<polyline class="curve {s.style} {colour}" points="{path}"{dash(s.colour)}/>')
        if s.style == "dots" or len(s.points) == 1:
            parts += [
                f'<circle class="{colour}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3">'
                f"<title>{escape(s.name)}: {y:.4g} at {number(round(x, 3))}</title></circle>"
                for x, y in s.points
            ]
    return "".join(parts)


def figure(chart: Chart) -> str:
    """Return a chart as HTML, with its title and a legend that names each curve and its last value."""
    legend = "".join(
        f'<span><i class="swatch{" dashed" if s.colour >= COLOURS else ""}" style="--c:var(--c{s.colour % COLOURS})">'
        f"</i>{escape(s.name)} <b>{number(float(f'{s.points[-1][1]:.4g}'))}</b></span>"
        for s in named(chart)
    )
    label = escape(f"{chart.title} by {chart.x_label}")
    return (
        f'<figure><figcaption>{escape(chart.title)}</figcaption><div class="legend">{legend}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{marks(chart)}</svg></figure>'
    )


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` points: means of neighbours, except for the first and the last, which stay."""
    if len(points) <= most:
        return list(points)
    inner, bins = points[1:-1], most - 2
    groups = [inner[i * len(inner) // bins : (i + 1) * len(inner) // bins] for i in range(bins)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [points[0], *means, points[-1]]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers from at most `low` to at least `high`."""
    if high <= low:
        low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def number(value: float) -> str:
    """Return a short number: 0.002, 1.5k, 2M."""
    if value and abs(value) < 1e-3:
        return f"{value:.6g}".replace("e-0", "e-")
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}"
    return f"{value:.6g}"


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the unit, in seconds and by name, in which to count a time of this length."""
    for size, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds > 2 * size:
            return size, name
    return 1.0, "seconds"
