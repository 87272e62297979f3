"""What the HTML pages share: one self-contained document, nothing fetched, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from jax_mlm.report.theme import CHART_RULES, variables
from jax_mlm.version import package_version

STYLE = (
    variables()
    + CHART_RULES
    + """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 var(--font); overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: .85rem; margin: 1rem 0 .3rem; color: var(--quiet); text-transform: uppercase; letter-spacing: .04em; }
.quiet { color: var(--quiet); } p { margin: .3rem 0; }
.cards, .charts, .samples { display: grid; gap: .8rem; }
.cards { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); margin-top: 1.2rem; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.samples { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.card, figure, .scroll, details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.card { padding: .7rem .9rem; margin: 0; min-width: 0; }
.card > b { display: block; font-size: 1.3rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
figure { margin: 0; padding: .7rem .7rem .3rem; min-width: 0; }
figcaption { font-weight: 600; }
svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .85rem; color: var(--quiet); }
.legend b { color: var(--ink); font-weight: 600; } .legend span { overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 1.1em; border-top: 3px solid var(--c); vertical-align: middle;
  margin-right: .35em; }
.swatch.dashed { border-top-style: dashed; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child > * { border-bottom: 0; } thead th { color: var(--quiet); font-weight: 500; white-space: nowrap; }
tbody th { font-weight: 500; white-space: nowrap; }
.facts td, .facts th { overflow-wrap: anywhere; min-width: 7rem; } .changed { background: var(--mark); }
mark { background: var(--mark); color: inherit; border-radius: .25rem; padding: 0 .25em; font-weight: 600; }
.answers { margin-top: .5rem; table-layout: fixed; } .answers th, .answers td { padding: .15rem .4rem; border: 0; }
.answers th { color: var(--quiet); font-weight: 400; text-align: right; width: 4.2rem; padding-left: 0; }
.answers thead td { color: var(--quiet); } .answers td:last-child { width: 5.6rem; text-align: right;
  padding-right: 0; }
.word { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; border-left: 2px solid var(--card) !important;
  background: linear-gradient(var(--bar), var(--bar)) 0 / var(--p) 100% no-repeat; }
.word.right { color: var(--good); font-weight: 600; } small { font-size: .85em; color: var(--quiet); }
@media (max-width: 30rem) { th, td { padding: .35rem .5rem; } .answers th { width: 2.8rem; }
  .answers td:last-child { width: 3.9rem; } .word small { display: block; } }
details { padding: .5rem .9rem; margin: .5rem 0; } summary { cursor: pointer; font-weight: 600; }
details .facts { margin: .4rem 0; }
"""
)


def page(title: str, body: str) -> str:
    """Return a whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>\n'
        f'<body>\n{body}\n<p class="quiet">jax_mlm {escape(package_version("jax-mlm"))}</p>\n</body></html>\n'
    )


def card(name: str, value: str, remark: str = "") -> str:
    """Return a card with one figure in large type."""
    below = f'<span class="quiet">{escape(remark)}</span>' if remark else ""
    return f'<div class="card"><span class="quiet">{escape(name)}</span><b>{escape(value)}</b>{below}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a header, each row named by its first cell; a wide one scrolls on its own."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        f"<tr><th>{escape(str(row[0]))}</th>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def settings(values: Mapping[str, object], usual: Mapping[str, object] | None = None) -> str:
    """Return a table of names and values; values that differ from `usual` are marked."""
    rows = []
    for name, value in values.items():
        mark = was = ""
        if usual is not None and name in usual and usual[name] != value:
            mark, was = ' class="changed"', f' title="the preset has {escape(text_of(usual[name]))}"'
        rows.append(f"<tr{mark}><th>{escape(name)}</th><td{was}>{escape(text_of(value))}</td></tr>")
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def text_of(value: object) -> str:
    """Return a value of a configuration as text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text_of, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value == "" else str(value)
