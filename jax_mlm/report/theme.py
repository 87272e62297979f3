"""Colours for light and dark, and the CSS rules of charts, shared by the pages and the standalone SVG files."""

from __future__ import annotations

import re
from collections.abc import Mapping

COLOURS = 8
"""Curves with a colour of their own, c0 … c7; more curves repeat them, dashed."""
LIGHT = {
    "ink": "#1c2430", "quiet": "#5b6675", "paper": "#fbfbfa", "card": "#ffffff", "line": "#e2e5ea",
    "good": "#17803d", "bar": "#d8e5fb", "mark": "#fff2c4",
    "c0": "#2f6fdb", "c1": "#d1561f", "c2": "#1f8a5a", "c3": "#9a4fc4",
    "c4": "#b58900", "c5": "#0f8b9c", "c6": "#c2336b", "c7": "#6b7280",
}  # fmt: skip
DARK = {
    "ink": "#e6e9ee", "quiet": "#9aa5b4", "paper": "#12161c", "card": "#1a2029", "line": "#2c3440",
    "good": "#5fd08a", "bar": "#23395e", "mark": "#4d431a",
    "c0": "#6ea3ff", "c1": "#ff9057", "c2": "#57cf97", "c3": "#cf94f2",
    "c4": "#e5c04f", "c5": "#4fcadb", "c6": "#ff79a8", "c7": "#a8b0bd",
}  # fmt: skip
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'
_CURVES = "".join(
    f".curve.c{n} {{ stroke: var(--c{n}); }} circle.c{n} {{ fill: var(--c{n}); }}\n" for n in range(COLOURS)
)
CHART_RULES = f"""
svg text {{ font-size: 11px; fill: var(--quiet); font-variant-numeric: tabular-nums; }}
svg .grid {{ stroke: var(--line); }} .curve {{ fill: none; stroke-width: 1.8; stroke-linejoin: round; }}
.curve.faint {{ opacity: .3; stroke-width: 1; }} .curve.dots {{ stroke-width: 1.4; }}
{_CURVES}"""


def variables() -> str:
    """Return the CSS that declares the font and, in light and dark, every colour as variables."""
    light, dark = (" ".join(f"--{name}: {value};" for name, value in colours.items()) for colours in (LIGHT, DARK))
    return (
        f":root {{ color-scheme: light dark; --font: {FONT}; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )


def literal(rules: str) -> str:
    """Return the rules with colours in place of variables, which SVG viewers other than browsers do not know."""

    def filled(colours: Mapping[str, str]) -> str:
        return re.sub(r"var\(--(\w+)\)", lambda match: colours[match[1]], rules)

    return f"{filled(LIGHT)}@media (prefers-color-scheme: dark) {{ {filled(DARK)} }}\n"
