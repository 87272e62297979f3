"""Pseudo-log-likelihoods and minimal pairs in words, and their progress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

from jax_mlm.config import Json
from jax_mlm.evals.text import Scored
from jax_mlm.report.live import at_terminal

Item = TypeVar("Item")


def counting(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield the items, and count them in a bar if someone is watching."""
    yield from track(
        items, what, total, console=Console(stderr=True), transient=True, disable=not at_terminal(), update_period=1.0
    )


def document_line(scored: Scored) -> str:
    """Return a document as a line: its scores, the tokens that count, and the text."""
    scores = "".join(f"{pll:10.3f}" for pll in scored.score.pll.values())
    unknown = f" ({scored.score.unknown} unknown)" if scored.score.unknown else ""
    return f"{scores}  {scored.score.tokens:5d} tokens{unknown}  {scored.text}"


def corpus_in_words(figures: Json) -> str:
    """Return the figures of a text in lines."""
    counts = ", ".join(f"{figures[name]:,} {name}" for name in ("documents", "words", "bytes", "tokens"))
    lines = [f"step {figures['step']}: {counts}, {figures['unknown']:,} of them unknown"]
    lines += [
        f"{method:<8}   pseudo-log-likelihood {found['pll']:.3f}   pseudo-perplexity per word "
        f"{found['perplexity_per_word']:.2f}   bits per byte {found['bits_per_byte']:.4f}"
        for method, found in figures["methods"].items()
    ]
    return "\n".join(lines)


def print_pairs(figures: Json) -> None:
    """Print the accuracy by each method: over all pairs, as a mean over paradigms, and of each group."""
    methods, unknown = figures["methods"], figures["unknown"]
    print(
        f"{figures['pairs']:,} pairs, {unknown['pairs']:,} of them with unknown tokens ({unknown['tokens']:,}); "
        "share whose good sentence is the likelier one, ties not among them:"
    )
    first = next(iter(methods.values()))
    console = Console(width=None if Console().is_terminal else 110, highlight=False, markup=False)
    grid = Table(box=None, pad_edge=False)
    for number, name in enumerate(("", "pairs", "unknown", *(name for method in methods for name in (method, "ties")))):
        grid.add_column(name, justify="right" if number else "left")

    def row(name: str, groups: list[Json]) -> None:
        cells = [cell for group in groups for cell in (f"{group['accuracy']:.4f}", f"{group['ties']:,}")]
        grid.add_row(name, f"{groups[0]['pairs']:,}", f"{groups[0]['unknown']:,}", *cells)

    row("all", [*methods.values()])
    means = [cell for found in methods.values() for cell in (f"{found['mean']:.4f}", "")]
    grid.add_row(f"mean of {len(first['UID'])} by UID", "", "", *means)
    for kind in ("linguistics_term", "UID"):
        for name in first[kind]:
            row(f"{kind} {name}", [found[kind][name] for found in methods.values()])
    console.print(grid)
