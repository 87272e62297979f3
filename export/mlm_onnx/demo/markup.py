"""Facts → HTML: the parts of the demo's page. Everything that comes from a user or a model is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from urllib.parse import parse_qs, urlencode

import numpy as np

from mlm_onnx.answer.attention import Attention
from mlm_onnx.demo.facts import Asked, Influence, Why, Word, filled_in, strength
from mlm_onnx.demo.heatmap import data_url
from mlm_onnx.demo.narrative import explanation, percent, quoted, unknown

TOP, HIDE, TEXT = "top", "hide", "text"
"""Query parameters of the page's address."""
HINT = "Choose one or more words above to hide; the model then shows what it expects there."
LEGEND = "Each other word is hidden in turn. The stronger its colour, the more the answer loses; underlined, it gains."
CELLS = ((16, 30), (28, 22), (48, 15), (80, 11))
"""(most tokens, width of a heat map's cell in pixels); with more tokens, cells are small and have no labels."""
SMALL_CELL = 4
FAINTEST = 0.05
"""Least shade at which a word is coloured."""
LOOKED_AT = 5
"""How many of the tokens that a head looks at most are named."""


# ---- the address ---------------------------------------------------------------------------------


def to_query(text: str, hidden: Sequence[int], top_k: int) -> str:
    """Encode the state of the page for its address; `from_query` is the inverse."""
    return urlencode({TEXT: text, HIDE: ",".join(map(str, hidden)), TOP: top_k})


def from_query(query: str, top_k: int, most: int) -> tuple[str | None, tuple[int, ...], int]:
    """Return (text, hidden words, top_k) from an address; what is missing or not a number gets its default."""
    given = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    hidden = {
        int(part) for part in given.get(HIDE, "").split(",") if part.isascii() and part.isdigit() and len(part) < 7
    }
    top = given.get(TOP, "")
    shown = int(top) if top.isascii() and top.isdigit() and len(top) < 7 else top_k
    return given.get(TEXT), tuple(sorted(hidden)), min(max(shown, 1), most)


# ---- words ---------------------------------------------------------------------------------------


def chips(text: str, words: Sequence[Word], positions: Sequence[int]) -> str:
    """Return the words as buttons, joined where no space separates them; pressed means hidden."""
    parts, pressed, end = [], set(positions), 0
    for position, word in enumerate(words):
        joined = " joined" if position and end == word.start else ""
        state = "true" if word.mask or position in pressed else "false"
        known = "" if word.known else " unknown"
        disabled = " aria-disabled='true'" if word.mask else ""
        shown = escape(word.text, quote=True)
        label = f"{shown}, not in the model’s vocabulary" if not word.known else shown
        attributes = f"data-position='{position}' tabindex='-1' aria-pressed='{state}' aria-label='{label}'{disabled}"
        parts.append(f"<button type='button' class='chip{joined}{known}' {attributes}>{shown}</button>")
        end = word.end
    return (
        "<p class='label' id='words-label'>Words <span class='quiet'>choose those to hide from the model</span></p>"
        f"<div class='words' role='toolbar' aria-labelledby='words-label'>{''.join(parts)}</div>"
    )


def notice(text: str) -> str:
    return f"<p class='notice'>{escape(text)}</p>"


def footer(text: str) -> str:
    return f"<p class='quiet'>{escape(text)}</p>"


# ---- answers -------------------------------------------------------------------------------------


def problem(message: str, query: str) -> str:
    """Return one friendly line instead of an answer."""
    return _answer(
        f"<p class='status problem' role='status' aria-live='polite'>{escape(_sentence(message))}</p>", query
    )


def hint(words: Sequence[Word], query: str) -> str:
    """Return the hint to hide a word, while nothing is hidden yet."""
    return _answer(f"<p class='status' role='status' aria-live='polite'>{HINT}</p>{_unknown(words)}", query)


def answers(asked: Asked, query: str) -> str:
    """Return the sentence filled in and, for each hidden word, the likeliest ones with their probabilities."""
    parts = [_mark(text) if answer else escape(text) for text, answer in filled_in(asked)]
    firsts = [(position, mask["candidates"][0]) for position, mask in zip(asked.positions, asked.masks, strict=True)]
    spoken = "; ".join(
        f"word {position + 1}: {quoted(first['token'])} with {percent(first['probability'])}"
        for position, first in firsts
    )
    cards = "".join(_card(asked, index) for index in range(len(asked.positions)))
    return _answer(
        f"<p class='status heard' role='status' aria-live='polite'>The model expects at {escape(spoken)}.</p>"
        f"<p class='filled'>{''.join(parts)}</p>{_unknown(asked.words)}<div class='cards'>{cards}</div>",
        query,
    )


def _card(asked: Asked, index: int) -> str:
    position, mask = asked.positions[index], asked.masks[index]
    word = asked.words[position]
    rows = "".join(
        f"<li{' class=original' if word.ids == (each['id'],) and not word.mask else ''}>"
        f"<span class='token'>{escape(each['token'])}</span>"
        f"<span class='share' data-probability='{each['probability']!r}'>{percent(each['probability'])}</span>"
        f"<span class='bar' aria-hidden='true'><i style='width:{100 * each['probability']:.2f}%'></i></span></li>"
        for each in mask["candidates"]
    )
    counted = f"<p class='quiet'>Position {mask['position']}, counted from 0</p>" if len(asked.text.split()) > 1 else ""
    hidden = "" if word.mask else f" <span class='quiet'>hidden: {escape(word.text)}</span>"
    return (
        f"<section class='card'><h2>Word {position + 1} of {len(asked.words)}{hidden}</h2>"
        f"{counted}<ol>{rows}</ol></section>"
    )


def _answer(inside: str, query: str) -> str:
    return f"<div class='answer' data-query='{escape(query, quote=True)}'>{inside}</div>"


def _unknown(words: Sequence[Word]) -> str:
    note = unknown([word.text for word in words if not word.known])
    return f"<p class='note'>{escape(note)}</p>" if note else ""


def _mark(text: str) -> str:
    return f"<mark>{escape(text)}</mark>"


def _sentence(message: str) -> str:
    return message[:1].upper() + message[1:] + ("" if message.endswith((".", "!", "?")) else ".")


# ---- why -----------------------------------------------------------------------------------------


def reasons(asked: Asked, whys: Sequence[Why]) -> str:
    """Return for each answer the sentence shaded by what it depends on, the explanation, and the numbers."""
    return f"<h2>Why?</h2><p class='quiet'>{LEGEND}</p>{''.join(_reason(asked, why) for why in whys)}"


def measuring() -> str:
    return "<h2>Why?</h2><p class='quiet'>Hiding each other word in turn …</p>"


def not_explained(message: str) -> str:
    return f"<p class='note'>{escape(_sentence(message))}</p>"


def _reason(asked: Asked, why: Why) -> str:
    shades = dict(zip((each.position for each in why.influences), strength(why.influences), strict=True))
    shown, end = [], 0
    for position, word in enumerate(asked.words):
        shown.append(escape(asked.text[end : word.start]))
        if position == why.position:
            shown.append(_mark(why.token))
        elif position in asked.positions:
            shown.append("<span class='blank'>hidden</span>")
        else:
            shown.append(_shaded(word.text, float(shades.get(position, 0.0))))
        end = word.end
    shown.append(escape(asked.text[end:]))
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in explanation(why))
    return (
        f"<section class='why'><h3>Word {why.position + 1}: {escape(quoted(why.token))}</h3>"
        f"<p class='shaded' aria-hidden='true'>{''.join(shown)}</p><ul class='said'>{lines}</ul>{_table(why)}</section>"
    )


def _shaded(word: str, shade: float) -> str:
    if abs(shade) < FAINTEST:
        return f"<span>{escape(word)}</span>"
    kind = "for" if shade > 0 else "against"
    return f"<span class='{kind}' style='--shade:{abs(shade):.3f}'>{escape(word)}</span>"


def _table(why: Why) -> str:
    if not why.influences:
        return ""
    rows = "".join(_row(why, each) for each in sorted(why.influences, key=lambda each: -each.effect))
    return (
        f"<details><summary>The numbers</summary><div class='wide'><table><thead><tr>"
        f"<th scope='col'>Without</th><th scope='col'>{escape(quoted(why.token))} has</th>"
        f"<th scope='col'>First answer then</th></tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _row(why: Why, each: Influence) -> str:
    then = each.instead if each.instead != why.token else "the same"
    return (
        f"<tr><th scope='row'>{escape(each.word)} <span class='quiet'>word {each.position + 1}</span></th>"
        f"<td data-effect='{each.effect!r}'>{percent(each.probability)}</td><td>{escape(then)}</td></tr>"
    )


# ---- attention -----------------------------------------------------------------------------------


def heat_map(attention: Attention, names: Sequence[str], masks: Sequence[int], layer: int, head: int | None) -> str:
    """Return the heat map of one head, or of the mean of a layer's heads: rows look at columns.

    Args:
        names: the tokens, as shown.
        masks: the tokens that are hidden words, whose rows are also described in sentences.
    """
    weights = attention.weights[layer].mean(0) if head is None else attention.weights[layer, head]
    size = len(names)
    cell = next((pixels for most, pixels in CELLS if size <= most), SMALL_CELL)
    which = f"layer {layer + 1}, " + ("mean of its heads" if head is None else f"head {head + 1}")
    picture = (
        f"<img src='{data_url(weights)}' width='{size * cell}' height='{size * cell}' "
        f"alt='Heat map of {which}: {size} by {size} tokens; the lines below list what the hidden words look at'>"
    )
    if cell == SMALL_CELL:
        inside = picture
    else:
        labels = [
            f"<span{' class=hidden' if position in masks else ''}>{escape(name)}</span>"
            for position, name in enumerate(names)
        ]
        inside = (
            f"<div class='columns' aria-hidden='true'>{''.join(labels)}</div>"
            f"<div class='rows' aria-hidden='true'>{''.join(labels)}</div>{picture}"
        )
    lines = "".join(f"<li>{escape(_looks(weights[position], names, position))}</li>" for position in masks)
    return (
        f"<figure class='heat' style='--cell:{cell}px'><div class='wide'><div class='grid'>{inside}</div></div>"
        f"<figcaption>{which.capitalize()}: each row looks at the columns. "
        f"The strongest colour is {percent(float(weights.max()))}.</figcaption></figure><ul class='said'>{lines}</ul>"
    )


def _looks(row: np.ndarray, names: Sequence[str], position: int) -> str:
    most = np.argsort(-row, kind="stable")[:LOOKED_AT]
    seen = ", ".join(f"{quoted(names[int(token)])} {percent(float(row[token]))}" for token in most)
    return f"Token {position + 1} ({names[position]}) looks most at {seen}."
