"""`convert --for web` of fine-tuned models: the page answers in Chromium what Python does, from the same bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from mlm_onnx import Answer, Classify, Tag
from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.convert import Request
from support.bundles import TEXTS
from support.pages import Driven
from support.tasks import LENGTH, TASKS, task_bundle

TOLERANCE, INT8_TOLERANCE = 1e-4, 2e-2
ESCAPED = "The cat <b>was</b> in the garden & again"
LONG = " ".join(TEXTS[6:10])
LINES = [
    *TEXTS[:2],
    ESCAPED,
    LONG,
    "  spaces   around\tand\nwithin  ",
    "a [MASK] and a [SEP] <mask> in the text, [UNK] too",
    "ünïcödé 東京 😀😀 mixed: the cat in cafe\u0301s",
]


@pytest.fixture(scope="module")
def made(web_runtime: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return bundles with random weights, made once each."""
    base = tmp_path_factory.mktemp("tasks")

    def make(name: str, kind: str = "wordpiece", family: str = "modernbert", **given: Any) -> Path:
        folder = base / "-".join([name, kind, family, *given])
        if not folder.exists():
            task_bundle(folder, TASKS[name], kind, family, layout="web", examples=[ESCAPED, "two"], **given)
        return folder

    return make


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def numbers(driven: Driven, selector: str, *names: str) -> list[tuple[Any, ...]]:
    """Return data of elements of the answer."""
    read = f"nodes => nodes.map(({{ dataset }}) => {list(names)}.map(name => dataset[name]))"
    return [tuple(each) for each in driven.page.eval_on_selector_all(f"#answers:not([hidden]) {selector}", read)]


def check_left_out(driven: Driven, left_out: int | None) -> None:
    if left_out:
        assert f"the last {left_out} tokens" in driven.text("notes")
    else:
        assert "Left out" not in driven.text("notes")


# ---- the same answers ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "family"), [
    ("classify", "bpe", "modernbert"), slow("several", "unigram", "albert"), slow("mean", "wordpiece", "distilbert"),
    slow("pair", "wordpiece", "bert"), slow("pair", "bpe", "roberta"),
])  # fmt: skip
def test_labels_are_pythons(name: str, kind: str, family: str, made: Any, asked: Callable[[Path], Driven]) -> None:
    folder = made(name, kind, family)
    driven, classify = asked(folder), Classify(folder)
    for text, other in zip(LINES, [*LINES[1:], LINES[0]], strict=True):
        given = (text, other) if TASKS[name].pair else text
        driven.show(**dict(zip(("text1", "text2"), [given] if isinstance(given, str) else given, strict=False)))
        expected = classify(given)
        rows = driven.page.eval_on_selector_all(
            "#answers li", "rows => rows.map(row => [row.children[0].textContent, +row.dataset.probability])"
        )
        assert [label for label, _ in rows] == [each["label"] for each in expected["labels"]]
        assert dict(rows) == pytest.approx(
            {each["label"]: each["probability"] for each in expected["labels"]}, abs=TOLERANCE
        )
        first = expected["label"] if "label" in expected else ", ".join(expected["predicted"]) or "none of the labels"
        assert driven.text("status").startswith(f"The model says {first}.")
        check_left_out(driven, expected.get("left_out"))


@pytest.mark.slow
def test_the_number_is_pythons(made: Any, asked: Callable[[Path], Driven]) -> None:
    folder = made("number")
    driven, classify = asked(folder), Classify(folder)
    for text in LINES:
        ((value,),) = numbers(driven.show(text1=text), ".filled", "value")
        assert float(value) == pytest.approx(classify(text)["value"], abs=TOLERANCE)
    assert "It knows one number." in driven.page.text_content("header")


@pytest.mark.parametrize(("kind", "family"), [
    ("wordpiece", "modernbert"), slow("bpe", "modernbert"), slow("unigram", "albert"),
])  # fmt: skip
def test_entities_are_pythons(kind: str, family: str, made: Any, asked: Callable[[Path], Driven]) -> None:
    folder, entities = made("tag", kind, family), 0
    driven, tag = asked(folder), Tag(folder)
    for text in LINES:
        found = numbers(driven.show(text1=text), ".entity", "label", "start", "end", "probability")
        shown = driven.page.eval_on_selector_all(".entity", "marks => marks.map(mark => mark.firstChild.textContent)")
        expected = tag(text)["entities"]
        assert [(label, int(start), int(end)) for label, start, end, _ in found] == [
            (each["label"], each["start"], each["end"]) for each in expected
        ]
        assert shown == [each["text"] for each in expected]
        assert [float(each[-1]) for each in found] == pytest.approx(
            [each["probability"] for each in expected], abs=TOLERANCE
        )
        entities += len(expected)
    assert entities > 10


@pytest.mark.parametrize(("name", "kind", "family"), [
    ("perhaps", "wordpiece", "bert"), slow("answer", "bpe", "roberta"), slow("perhaps", "unigram", "modernbert"),
])  # fmt: skip
def test_answers_are_pythons(name: str, kind: str, family: str, made: Any, asked: Callable[[Path], Driven]) -> None:
    folder, answered = made(name, kind, family), 0
    driven, answer = asked(folder), Answer(folder)
    for context, question in zip(LINES, [*LINES[2:], *LINES[:2]], strict=True):
        driven.show(text1=context, text2=question)
        expected = answer(question, context)
        ((probability,),) = numbers(driven, ".filled", "probability")
        assert float(probability) == pytest.approx(expected["probability"], abs=TOLERANCE)
        marks = driven.page.eval_on_selector_all("#answers mark", "marks => marks.map(mark => mark.textContent)")
        if expected["answer"] is None:
            assert marks == []
            assert driven.text("status").startswith("The model finds no answer.")
        else:
            assert marks == [expected["answer"]]
            assert numbers(driven, "mark", "start", "end") == [(str(expected["start"]), str(expected["end"]))]
            answered += 1
        assert driven.page.text_content("#answers .filled") == context
        check_left_out(driven, expected.get("left_out"))
    assert answered > 0


@pytest.mark.slow
def test_int8_labels_are_near_pythons(made: Any, open_page: Callable[..., Driven]) -> None:
    folder = made("classify", "wordpiece", dtype="int8")
    driven = open_page(folder, "#" + urlencode({"text1": LONG}))
    found = {float(share) for (share,) in numbers(driven, "li", "probability")}
    expected = {each["probability"] for each in Classify(folder)(LONG)["labels"]}
    assert sorted(found) == pytest.approx(sorted(expected), abs=INT8_TOLERANCE)


# ---- what people do --------------------------------------------------------------------------------


def test_what_is_shown_does_not_depend_on_colour_or_sight(made: Any, open_page: Callable[..., Driven]) -> None:
    driven = open_page(made("tag"), viewport={"width": 375, "height": 700})
    assert driven.page.get_by_role("heading", name="Find what is named").count() == 1
    assert driven.page.get_by_text("It knows x, y.").is_visible()
    box = driven.page.get_by_role("textbox", name="Text")
    assert box.input_value() == ESCAPED, "the first example"
    assert driven.page.locator("#answers b").count() == 0, "a text is text"
    kinds = driven.page.eval_on_selector_all(".entity", "marks => marks.map(({ lastChild }) => lastChild.textContent)")
    assert kinds
    assert all(kind.strip()[0] in "xy" and kind.endswith(" %") for kind in kinds)
    box.fill(LONG)
    count = len(numbers(driven.settle(), ".entity"))
    assert driven.page.get_by_role("status").text_content().startswith(f"The model finds {count} entities.")
    assert f"longer than the {LENGTH} tokens the model reads at once" in driven.text("notes")
    for scheme in ("light", "dark"):
        driven.page.emulate_media(color_scheme=scheme)
        assert driven.page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [375, 375]
        assert driven.contrast("h1", "header p", "#status", ".entity", ".kind", "#notes li") >= 4.5
    driven.page.get_by_role("combobox", name="Examples").select_option("two")
    assert driven.settle().page.text_content("#answers .filled").startswith("two")
    box.fill(" ")
    assert driven.settle().text("status") == "Type a text first."
    box.fill("x" * 20_001)
    assert "this page takes up to 20000" in driven.settle().text("status")
    assert driven.page.is_hidden("#answers")


def test_both_texts_are_asked_for_and_the_address_carries_them(made: Any, asked: Callable[[Path], Driven]) -> None:
    driven = asked(made("perhaps", "wordpiece", "bert")).show(text1="", text2="")
    assert driven.text("status") == "Fill in both texts."
    driven.page.get_by_label("Context").fill(TEXTS[0])
    driven.page.get_by_label("Question").fill("where & when?")
    assert driven.settle().text("status").startswith("The ")
    assert driven.page.evaluate("location.hash") == "#" + urlencode({"text1": TEXTS[0], "text2": "where & when?"})


def test_a_space_is_still_for_masked_words() -> None:
    Request("fp32", "web").check_task("tag")
    with pytest.raises(BundleError, match="--for space shows masked words; this run was fine-tuned to tag"):
        Request("fp32", "space").check_task("tag")
