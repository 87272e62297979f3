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
"""Parameters of the page's address."""
HINT = "Choose one or more words above to hide; the model then shows what it expects there."
LEGEND = "Each other word is hidden in turn. The stronger its colour, the more the answer loses; underlined, it gains."
CELLS = ((16, 30), (28, 22), (48, 15), (80, 11))
"""Up to so many tokens, a cell of the heat map is so many pixels wide; beyond, cells are small and have no labels."""
SMALL_CELL = 4
FAINTEST = 0.05
"""Shade from which a word is coloured at all."""
LOOKED_AT = 5
"""Tokens that a head looks at most, named."""


# ---- the address ---------------------------------------------------------------------------------


def to_query(text: str, hidden: Sequence[int], top_k: int) -> str:
    """The state of the page, for its address; `from_query` is its inverse."""
    return urlencode({TEXT: text, HIDE: ",".join(map(str, hidden)), TOP: top_k})


def from_query(query: str, top_k: int, most: int) -> tuple[str | None, tuple[int, ...], int]:
    """(text, hidden words, top_k) of an address; what is missing or no number takes its default."""
    given = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    hidden = {
        int(part) for part in given.get(HIDE, "").split(",") if part.isascii() and part.isdigit() and len(part) < 7
    }
    top = given.get(TOP, "")
    shown = int(top) if top.isascii() and top.isdigit() and len(top) < 7 else top_k
    return given.get(TEXT), tuple(sorted(hidden)), min(max(shown, 1), most)


# ---- words ---------------------------------------------------------------------------------------


def chips(text: str, words: Sequence[Word], places: Sequence[int]) -> str:
    """The words as buttons, those without a space between them side by side; pressed means hidden."""
    parts, pressed, end = [], set(places), 0
    for place, word in enumerate(words):
        joined = " joined" if place and end == word.start else ""
        state = "true" if word.mask or place in pressed else "false"
        known = "" if word.known else " unknown"
        fixed = " aria-disabled='true'" if word.mask else ""
        said = escape(word.text, quote=True)
        label = f"{said}, not in the model’s vocabulary" if not word.known else said
        facts = f"data-place='{place}' tabindex='-1' aria-pressed='{state}' aria-label='{label}'{fixed}"
        parts.append(f"<button type='button' class='chip{joined}{known}' {facts}>{said}</button>")
        end = word.end
    return (
        "<p class='label' id='words-label'>Words <span class='quiet'>choose those to hide from the model</span></p>"
        f"<div class='words' role='toolbar' aria-labelledby='words-label'>{''.join(parts)}</div>"
    )


def notice(said: str) -> str:
    return f"<p class='notice'>{escape(said)}</p>"


def footer(said: str) -> str:
    return f"<p class='quiet'>{escape(said)}</p>"


# ---- answers -------------------------------------------------------------------------------------


def problem(said: str, query: str) -> str:
    """One friendly line instead of an answer."""
    return _answer(f"<p class='status problem' role='status' aria-live='polite'>{escape(_sentence(said))}</p>", query)


def hint(words: Sequence[Word], query: str) -> str:
    """Nothing is hidden yet."""
    return _answer(f"<p class='status' role='status' aria-live='polite'>{HINT}</p>{_unknown(words)}", query)


def answers(asked: Asked, query: str) -> str:
    """The sentence filled in, and for each hidden word the likeliest ones with their probabilities."""
    parts = [_mark(text) if answer else escape(text) for text, answer in filled_in(asked)]
    firsts = [(place, mask["candidates"][0]) for place, mask in zip(asked.places, asked.masks, strict=True)]
    spoken = "; ".join(
        f"word {place + 1}: {quoted(first['token'])} with {percent(first['probability'])}" for place, first in firsts
    )
    cards = "".join(_card(asked, index) for index in range(len(asked.places)))
    return _answer(
        f"<p class='status heard' role='status' aria-live='polite'>The model expects at {escape(spoken)}.</p>"
        f"<p class='filled'>{''.join(parts)}</p>{_unknown(asked.words)}<div class='cards'>{cards}</div>",
        query,
    )


def _card(asked: Asked, index: int) -> str:
    place, mask = asked.places[index], asked.masks[index]
    word = asked.words[place]
    rows = "".join(
        f"<li{' class=original' if word.ids == (each['id'],) and not word.mask else ''}>"
        f"<span class='token'>{escape(each['token'])}</span>"
        f"<span class='share' data-probability='{each['probability']!r}'>{percent(each['probability'])}</span>"
        f"<span class='bar' aria-hidden='true'><i style='width:{100 * each['probability']:.2f}%'></i></span></li>"
        for each in mask["candidates"]
    )
    position = (
        f"<p class='quiet'>Position {mask['position']}, counted from 0</p>" if len(asked.text.split()) > 1 else ""
    )
    hidden = "" if word.mask else f" <span class='quiet'>hidden: {escape(word.text)}</span>"
    return (
        f"<section class='card'><h2>Word {place + 1} of {len(asked.words)}{hidden}</h2>"
        f"{position}<ol>{rows}</ol></section>"
    )


def _answer(inside: str, query: str) -> str:
    return f"<div class='answer' data-query='{escape(query, quote=True)}'>{inside}</div>"


def _unknown(words: Sequence[Word]) -> str:
    said = unknown([word.text for word in words if not word.known])
    return f"<p class='note'>{escape(said)}</p>" if said else ""


def _mark(text: str) -> str:
    return f"<mark>{escape(text)}</mark>"


def _sentence(said: str) -> str:
    return said[:1].upper() + said[1:] + ("" if said.endswith((".", "!", "?")) else ".")


# ---- why -----------------------------------------------------------------------------------------


def reasons(asked: Asked, whys: Sequence[Why]) -> str:
    """Return for each answer the sentence shaded by what it depends on, the explanation, and the numbers."""
    return f"<h2>Why?</h2><p class='quiet'>{LEGEND}</p>{''.join(_reason(asked, why) for why in whys)}"


def measuring() -> str:
    return "<h2>Why?</h2><p class='quiet'>Hiding each other word in turn …</p>"


def not_explained(said: str) -> str:
    return f"<p class='note'>{escape(_sentence(said))}</p>"


def _reason(asked: Asked, why: Why) -> str:
    shades = dict(zip((each.place for each in why.influences), strength(why.influences), strict=True))
    shown, end = [], 0
    for place, word in enumerate(asked.words):
        shown.append(escape(asked.text[end : word.start]))
        if place == why.place:
            shown.append(_mark(why.token))
        elif place in asked.places:
            shown.append("<span class='blank'>hidden</span>")
        else:
            shown.append(_shaded(word.text, float(shades.get(place, 0.0))))
        end = word.end
    shown.append(escape(asked.text[end:]))
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in explanation(why))
    return (
        f"<section class='why'><h3>Word {why.place + 1}: {escape(quoted(why.token))}</h3>"
        f"<p class='shaded' aria-hidden='true'>{''.join(shown)}</p><ul class='said'>{said}</ul>{_table(why)}</section>"
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
        f"<tr><th scope='row'>{escape(each.word)} <span class='quiet'>word {each.place + 1}</span></th>"
        f"<td data-effect='{each.effect!r}'>{percent(each.probability)}</td><td>{escape(then)}</td></tr>"
    )


# ---- attention -----------------------------------------------------------------------------------


def heat_map(attention: Attention, names: Sequence[str], masks: Sequence[int], layer: int, head: int | None) -> str:
    """One head, or the mean of a layer's heads: rows look at columns.

    Args:
        names: of the tokens, as shown.
        masks: the tokens that are hidden words, whose rows are also put into words.
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
            f"<span{' class=hidden' if place in masks else ''}>{escape(name)}</span>"
            for place, name in enumerate(names)
        ]
        inside = (
            f"<div class='columns' aria-hidden='true'>{''.join(labels)}</div>"
            f"<div class='rows' aria-hidden='true'>{''.join(labels)}</div>{picture}"
        )
    said = "".join(f"<li>{escape(_looks(weights[place], names, place))}</li>" for place in masks)
    return (
        f"<figure class='heat' style='--cell:{cell}px'><div class='wide'><div class='grid'>{inside}</div></div>"
        f"<figcaption>{which.capitalize()}: each row looks at the columns. "
        f"The strongest colour is {percent(float(weights.max()))}.</figcaption></figure><ul class='said'>{said}</ul>"
    )


def _looks(row: np.ndarray, names: Sequence[str], place: int) -> str:
    most = np.argsort(-row, kind="stable")[:LOOKED_AT]
    seen = ", ".join(f"{quoted(names[int(token)])} {percent(float(row[token]))}" for token in most)
    return f"Token {place + 1} ({names[place]}) looks most at {seen}."
