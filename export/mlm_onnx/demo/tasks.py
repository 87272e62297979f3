"""The page of a fine-tuned model: its label as bars, its entities as coloured spans, or its answer marked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from mlm_onnx.answer.questions import Answer, Answered
from mlm_onnx.answer.tasks import Classified, Classify, Tag, Tagged
from mlm_onnx.bundle.layout import ANSWER, CLASSIFY, TAG, QueryError
from mlm_onnx.bundle.read import Bundle
from mlm_onnx.demo.markup import problem
from mlm_onnx.demo.narrative import percent

SHOWN = 20
"""Most labels that have a bar."""
HUES = 12
"""Different colours of entities; types that come after these share them."""


@dataclass(frozen=True)
class TaskPage:
    """What the page of a task asks for, and what it says."""

    title: str
    lead: str
    inputs: Sequence[tuple[str, str]]
    """Name and placeholder of each text."""
    answer: Callable[..., str]
    """The texts → HTML."""


def page_of(bundle: Bundle, threads: int | None = None) -> TaskPage:
    """Return the page for the bundle of a fine-tuned model."""
    return PAGES[bundle.task](bundle, threads)


def build_task(page: TaskPage, examples: Sequence[str], about: str, options: Mapping[str, Any]) -> gr.Blocks:
    """Build the page; `options` say how handlers are called."""
    with gr.Blocks(title=page.title, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {page.title}\n{page.lead}")
        texts = [
            gr.Textbox(label=name, lines=2, max_lines=12, placeholder=placeholder, elem_id=f"text-{number}")
            for number, (name, placeholder) in enumerate(page.inputs)
        ]
        shown = gr.HTML(elem_id="answers", apply_default_css=False, container=False)
        gr.HTML(f"<p class='quiet'>{escape(about)}</p>", elem_id="about", apply_default_css=False)

        def answer(*given: str) -> str:
            if not all(text.strip() for text in given):
                return problem("type a text first" if len(given) == 1 else "fill in both texts", "")
            try:
                return page.answer(*given)
            except QueryError as error:
                return problem(str(error), "")

        if len(texts) == 1 and examples:
            with gr.Row(elem_id="examples"):
                for example in examples:
                    button = gr.Button(example if len(example) <= 60 else f"{example[:60]}…", size="sm", min_width=0)
                    button.click(lambda example=example: (example, answer(example)), None, [texts[0], shown], **options)
        for text in texts:
            text.change(answer, texts, shown, **options)
    return blocks


# ---- one page a task -----------------------------------------------------------------------------


def _classify(bundle: Bundle, threads: int | None) -> TaskPage:
    predictor = Classify(bundle, threads)
    inputs = [("Text", "Type a text")]
    if predictor.head.pair:
        inputs = [("First text", "Type a text"), ("Second text", "Type another")]

        def answer(*given: str) -> str:
            return bars(predictor((given[0], given[1])))

    else:

        def answer(*given: str) -> str:
            return bars(predictor(given[0]))

    return TaskPage("Classify a text", f"It knows {named(predictor.labels)}.", inputs, answer)


def _tag(bundle: Bundle, threads: int | None) -> TaskPage:
    predictor = Tag(bundle, threads)
    types = [*dict.fromkeys(label[2:] for label in predictor.labels if label != "O")]

    def answer(text: str) -> str:
        return spans(predictor(text), types)

    return TaskPage("Find what is named", f"It knows {named(types)}.", [("Text", "Type a text")], answer)


def _answer(bundle: Bundle, threads: int | None) -> TaskPage:
    predictor = Answer(bundle, threads)

    def answer(context: str, question: str) -> str:
        return marked(predictor(question, context), context)

    inputs = [("Context", "A text in which the answer stands"), ("Question", "What do you want to know?")]
    return TaskPage("Ask a text", "The answer is a part of the text.", inputs, answer)


PAGES: Mapping[str, Callable[[Bundle, int | None], TaskPage]] = {CLASSIFY: _classify, TAG: _tag, ANSWER: _answer}


def named(labels: Sequence[str]) -> str:
    """Return labels in words."""
    if not labels:
        return "one number"
    return ", ".join(labels[:SHOWN]) + (", …" if len(labels) > SHOWN else "")


# ---- answers as HTML -----------------------------------------------------------------------------


def bars(found: Classified) -> str:
    """Return a bar for each label, the likeliest first; of a regression the number."""
    if "value" in found:
        said, number = _said(f"The model says {found['value']:.4g}."), f"<p class='filled'>{found['value']:.4g}</p>"
        return said + number + _left_out(found, "first text")
    labels = found.get("labels", [])
    first = found["label"] if "label" in found else ", ".join(found.get("predicted", ())) or "none of the labels"
    rows = "".join(
        f"<li><span class='token'>{escape(each['label'])}</span>"
        f"<span class='share' data-probability='{each['probability']!r}'>{percent(each['probability'])}</span>"
        f"<span class='bar' aria-hidden='true'><i style='width:{100 * each['probability']:.2f}%'></i></span></li>"
        for each in labels[:SHOWN]
    )
    card = f"<section class='card'><h2>{escape(first)}</h2><ol>{rows}</ol></section>"
    return f"{_said(f'The model says {first}.')}{card}{_left_out(found, 'first text')}"


def spans(found: Tagged, types: Sequence[str]) -> str:
    """Return the text with its entities coloured by type, each with its name."""
    text, parts, end = found["text"], [], 0
    for each in found["entities"]:
        parts.append(escape(text[end : each["start"]]))
        hue = types.index(each["label"]) % HUES * 360 // HUES if each["label"] in types else 0
        parts.append(
            f"<mark class='entity' style='--hue:{hue}' data-start='{each['start']}' data-end='{each['end']}' "
            f"data-probability='{each['probability']!r}'>{escape(each['text'])}"
            f"<span class='kind'>{escape(each['label'])} {percent(each['probability'])}</span></mark>"
        )
        end = each["end"]
    parts.append(escape(text[end:]))
    count = len(found["entities"])
    named = "nothing" if not count else "one entity" if count == 1 else f"{count} entities"
    return f"{_said(f'The model finds {named}.')}<p class='filled'>{''.join(parts)}</p>"


def marked(found: Answered, context: str) -> str:
    """Return the context with the answer marked."""
    if found["start"] is None or found["end"] is None:
        nothing = f"{_said('The model finds no answer.')}<p class='filled'>{escape(context)}</p>"
        return nothing + _left_out(found, "question")
    start, end = found["start"], found["end"]
    inside = f"<mark data-start='{start}' data-end='{end}'>{escape(context[start:end])}</mark>"
    said = f"The answer is “{found['answer']}”, with {percent(found['probability'])}."
    shown = f"<p class='filled'>{escape(context[:start])}{inside}{escape(context[end:])}</p>"
    return _said(said) + shown + _left_out(found, "question")


def _left_out(found: Classified | Answered, cut: str) -> str:
    """Return a note on the tokens of a text that no window has room for, if there are any."""
    count = found.get("left_out")
    return (
        f"<p class='note'>Left out: the last {count} tokens of the {cut}, for which no window has room.</p>"
        if count
        else ""
    )


def _said(text: str) -> str:
    return f"<p class='status' role='status' aria-live='polite'>{escape(text)}</p>"
