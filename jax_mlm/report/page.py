"""`report.html`: a whole run on one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from jax_mlm.config import Json, to_json
from jax_mlm.presets import PRESETS
from jax_mlm.report.charts import Chart, figure
from jax_mlm.report.markup import card, page, settings, table
from jax_mlm.report.scores import read_scores, scores_html
from jax_mlm.report.summary import Checkpoint, Summary, flat
from jax_mlm.report.words import duration, percent

REPORT_FILE = "report.html"
SHOWN = 8
"""Evaluations shown for each sample, evenly spaced; the first and the last are among them."""
OTHER = "training"
"""Heading of the options at the top level of the configuration."""


def report(summary: Summary, saved: Sequence[Checkpoint], charts: Iterable[Chart]) -> str:
    """Return the page of a run."""
    name = summary.name
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="quiet">{escape(_subtitle(summary))}</p>',
        f'<div class="cards">{"".join(_cards(summary))}</div>',
        f'<h2>Curves</h2><div class="charts">{"".join(map(figure, charts))}</div>',
    ]
    if (scores := read_scores(summary.run)) is not None:
        parts.append(scores_html(scores))
    if summary.samples:
        note = "The same held-out sentences at every validation, each with one word masked. Green: the right word."
        if not summary.config["data"]:
            note = "The training sentence itself, one word masked: nothing here is held out."
        parts.append(f'<h2>Sample predictions</h2><p class="quiet">{note}</p>{_samples(summary.samples)}')
    parts += ["<h2>Checkpoints</h2>", _checkpoints(saved, summary), "<h2>Configuration</h2>", _configuration(summary)]
    parts += ["<h2>Environment</h2>", _environment(summary)]
    return page(f"{name} · jax_mlm", "\n".join(parts))


def _subtitle(summary: Summary) -> str:
    config = summary.config
    model = config["model"]
    shape = f"{model['family']}, {model['layers']} layers of {model['width']}, vocabulary {model['vocab_size']:,}"
    state = "finished" if summary.final else "so far"
    return f"preset {config['preset']} · {shape} · {state}: {summary.steps:,} steps in {duration(summary.seconds)}"


def _cards(summary: Summary) -> list[str]:
    out = []
    loss, end = "validation loss", "full validation set, at the end"
    if not summary.config["data"]:
        loss, end = "loss on the sentence", "at the end"
    measured = summary.final or summary.best
    if measured and summary.metric:
        out.append(card(summary.metric, f"{measured[summary.metric]:.4f}", "examples that choose, at the end"))
        assert summary.best is not None
        out.append(
            card(f"best {summary.metric}", f"{summary.best[summary.metric]:.4f}", f"step {summary.best['step']:,}")
        )
    elif measured:
        which = end if summary.final else f"best so far, step {measured['step']:,}"
        out += [
            card(loss, f"{measured['loss']:.4f}", which),
            card("masked accuracy", f"{measured['accuracy']:.1%}", "15 % masks, 80/10/10"),
            card("perplexity", _perplexity(measured["loss"])),
        ]
    if summary.final and summary.best and not summary.metric:
        out.append(card("best validation", f"{summary.best['loss']:.4f}", f"at step {summary.best['step']:,}"))
    if summary.tokens is not None:
        out.append(card("training tokens", f"{summary.tokens:,}"))
    for back in summary.rollbacks:
        out.append(card("diverged", f"step {back['from']:,}", f"went on from step {back['step']:,}"))
    if summary.skipped:
        out.append(card("updates skipped", f"{summary.skipped:,}", "loss or gradient not finite, or a spike"))
    rate = card("tokens per second", f"{summary.tokens_per_second:,.0f}")
    used = sorted(line["mfu"] for line in summary.train if "mfu" in line)
    return [*out, rate, *([card("MFU", f"{used[len(used) // 2]:.1%}")] if used else [])]


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):,.2f}" if loss < 50 else "∞"


def _samples(evaluations: Sequence[Json]) -> str:
    count = min(SHOWN, len(evaluations))
    shown = [evaluations[i * (len(evaluations) - 1) // max(count - 1, 1)] for i in range(count)]
    cards = []
    for number, sample in enumerate(evaluations[-1]["samples"]):
        rows = "".join(
            f"<tr><th>{evaluation['step']:,}</th>{_candidates(evaluation['samples'][number])}</tr>"
            for evaluation in shown
        )
        before, after = sample["split"]
        text = f"{escape(before)}<mark>{escape(sample['right'])}</mark>{escape(after)}"
        most = len(sample["candidates"])
        head = f"<thead><tr><th>step</th><td colspan={most}>top predictions</td><td>right word</td></tr></thead>"
        cards.append(
            f'<div class="card"><div>{text}</div><table class="answers">{head}<tbody>{rows}</tbody></table></div>'
        )
    return f'<div class="samples">{"".join(cards)}</div>'


def _candidates(sample: Json) -> str:
    """Return cells: the top predictions, with probabilities as bars, and the probability of the hidden word."""
    cells = []
    for candidate in sample["candidates"]:
        right = " right" if candidate["token"] == sample["right"] else ""
        share = f"--p:{100 * candidate['probability']:.1f}%"
        text = f"{escape(candidate['token'])} <small>{escape(percent(candidate['probability']))}</small>"
        cells.append(f'<td class="word{right}" style="{share}">{text}</td>')
    return "".join([*cells, f'<td class="share">{escape(percent(sample["probability"]))}</td>'])


def _checkpoints(saved: Sequence[Checkpoint], summary: Summary) -> str:
    if not saved:
        return '<p class="quiet">No checkpoint yet.</p>'
    best = min((c.loss for c in saved if c.loss is not None), default=None)
    rows = []
    for c in saved:
        is_best = c.step == (summary.best or {})["step"] if summary.metric else c.loss is not None and c.loss == best
        marks = [*(["best"] if is_best else []), *(["newest"] if c is saved[-1] else [])]
        loss = "not measured" if c.loss is None else f"{c.loss:.4f}"
        rows.append((f"step {c.step:,}", loss, f"{c.size / 1e6:.1f} MB", ", ".join(marks)))
    return table(("checkpoint", "validation loss", "size", ""), rows)


def _configuration(summary: Summary) -> str:
    config = summary.config
    preset = to_json(PRESETS[config["preset"]]) if config["preset"] in PRESETS else None
    groups = {OTHER: {k: v for k, v in config.items() if not isinstance(v, dict)}}
    groups |= {name: values for name, values in config.items() if isinstance(values, dict)}
    usual = flat(preset) if preset else None
    parts = ['<p class="quiet">Highlighted values differ from the preset.</p>' if usual else ""]
    for name, values in groups.items():
        parts.append(f"<details><summary>{escape(name)}</summary>{settings(flat(values), usual)}</details>")
    return "".join(parts)


def _environment(summary: Summary) -> str:
    body = summary.run_file
    parts = {"versions": body.get("versions", {}), "device": body.get("device", {}), "data": body.get("data", {})}
    return "".join(
        f"<details><summary>{escape(name)}</summary>{settings(values)}</details>"
        for name, values in parts.items()
        if values
    )
