"""Charts as one standalone SVG file: title, legend, panels, and its own colours for light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from jax_mlm.report.charts import HEIGHT, WIDTH, Chart, Series, dash, marks, named
from jax_mlm.report.theme import CHART_RULES, COLOURS, FONT, literal
from jax_mlm.report.words import clipped

SCALE = 1.5
"""CSS pixels per unit of the drawing when it is opened on its own."""
MARGIN, TITLE, LINE, CAPTION = 14, 30, 18, 24
"""Margin, and the heights of the title, of a line of the legend, and of the caption over each panel."""
LETTER, TITLE_LETTER, SWATCH = 6.4, 8.6, 20
"""Estimated widths of a letter at 11 and at 15 pixels, and the width of a legend stroke with its gap."""
RULES = f"""svg {{ font-family: {FONT}; background: var(--card); }} .paper {{ fill: var(--card); }}
svg text.title {{ font-size: 15px; font-weight: 600; fill: var(--ink); }}
svg text.caption {{ font-size: 12px; font-weight: 600; fill: var(--ink); }}"""


def picture(title: str, charts: Sequence[Chart], columns: int = 1) -> str:
    """Return the document: the charts as panels in `columns` columns, under one legend for all of them."""
    width = 2 * MARGIN + columns * WIDTH + (columns - 1) * MARGIN
    keys = {series.name: series for chart in charts for series in named(chart)}
    legend, lines = _legend(keys.values(), width)
    top = MARGIN + TITLE + lines * LINE
    rows = -(-len(charts) // columns)
    height = top + rows * (CAPTION + HEIGHT + MARGIN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width * SCALE:g}" '
        f'height="{height * SCALE:g}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>:root {{ color-scheme: light dark; }}\n{literal(CHART_RULES + RULES)}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        f'<text class="title" x="{MARGIN}" y="{MARGIN + 15}">'
        f"{escape(clipped(title, int((width - 2 * MARGIN) / TITLE_LETTER)))}</text>",
        legend,
    ]
    for index, chart in enumerate(charts):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * (WIDTH + MARGIN), top + row * (CAPTION + HEIGHT + MARGIN)
        parts.append(
            f'<g transform="translate({x} {y})"><text class="caption" y="15">{escape(chart.title)}</text>'
            f'<g transform="translate(0 {CAPTION})">{marks(chart)}</g></g>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _legend(keys: Iterable[Series], width: int) -> tuple[str, int]:
    """Return the strokes and names, and the number of lines they take."""
    parts, x, line = [], float(MARGIN), 0
    for series in keys:
        name = clipped(series.name, int((width - 2 * MARGIN - SWATCH) / LETTER))
        taken = SWATCH + len(name) * LETTER + MARGIN
        if x > MARGIN and x + taken > width:
            x, line = float(MARGIN), line + 1
        y = MARGIN + TITLE + line * LINE
        parts.append(
            f'<polyline class="curve c{series.colour % COLOURS}" points="{x:g},{y} {x + 15:g},{y}"'
            f'{dash(series.colour)}/><text x="{x + SWATCH:g}" y="{y + 4}">{escape(name)}</text>'
        )
        x += taken
    return "".join(parts), line + 1 if parts else 0
