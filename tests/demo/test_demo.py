"""The demo's page in a real Chromium: clicks, keys and addresses, the predictor's numbers, and nothing from afar."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlm_onnx import FillMask
from mlm_onnx.__main__ import main
from mlm_onnx.answer.reader import Reader, Text
from support.servers import free_port, needs_gradio, serving
from support.texts import WORDS

from jax_mlm.presets import SENTENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def bundle(trained_bundle: Callable[..., Path]) -> Path:
    """The founding sentence, trained, with attention."""
    return trained_bundle("--with-attention")


@pytest.fixture(scope="module")
def address(bundle: Path, environment: dict[str, str]) -> Iterator[str]:
    port = free_port()
    line = [sys.executable, "-m", "mlm_onnx", "demo", str(bundle), "--port", str(port), "--threads", "1"]
    with serving(line, port, env=environment):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def open_page(chromium: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens the page; at the end, nothing may have gone wrong in it or been asked of another server."""
    errors: list[str] = []
    asked: list[str] = []
    contexts = []

    def start(query: str = "", **options: Any) -> Page:
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address + query)
        page.wait_for_selector("#answers .status")
        return page

    yield start
    for context in contexts:
        context.close()
    assert errors == []
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    assert asked


def wait_for(page: Page, status: str) -> None:
    page.wait_for_function(
        "said => document.querySelector('#answers .status')?.textContent.includes(said)", arg=status, timeout=20_000
    )


def shown(page: Page) -> list[dict[str, float]]:
    """Token → probability, in full, of each card."""
    card = (
        "cards => cards.map(card => [...card.querySelectorAll('li')].map(row => "
        "[row.querySelector('.token').textContent, Number(row.querySelector('.share').dataset.probability)]))"
    )
    return [dict(rows) for rows in page.eval_on_selector_all("#answers .card", card)]


def expected(fill: FillMask, hidden: list[int], top_k: int) -> list[dict[str, float]]:
    text = " ".join(fill.mask_token if at in hidden else word for at, word in enumerate(WORDS))
    return [{c["token"]: c["probability"] for c in mask["candidates"]} for mask in fill(text, top_k=top_k)["masks"]]


@needs_gradio
def test_words_are_clicked_and_answers_are_the_predictors(open_page: Callable[..., Page], bundle: Path) -> None:
    page, fill = open_page(), FillMask(bundle, 1)
    assert page.input_value("#text textarea") == SENTENCE
    assert page.locator("#words .chip").all_inner_texts() == WORDS
    assert "learned it by heart" in page.inner_text("#notice")
    assert shown(page) == expected(fill, [2], 3)
    page.click(".chip[data-position='4']")
    wait_for(page, "word 5")
    assert shown(page) == expected(fill, [2, 4], 3)
    assert page.inner_text("#answers .filled") == SENTENCE
    page.click(".chip[data-position='2']")
    wait_for(page, "at word 5")
    assert shown(page) == expected(fill, [4], 3)
    page.wait_for_selector("#why .said")
    assert "The hidden word was “super”: rank 1 of 13, the answer is right." in page.inner_text("#why")
    page.click("#why summary")
    effects = page.eval_on_selector_all(
        "#why td[data-effect]", "cells => cells.map(cell => Number(cell.dataset.effect))"
    )
    measured = fill.explain(SENTENCE.replace("super", "[MASK]"))["masks"][0]["words"]
    assert effects == sorted((word["effect"] for word in measured), reverse=True)


@needs_gradio
@pytest.mark.slow
def test_the_address_is_the_page(open_page: Callable[..., Page], bundle: Path) -> None:
    page = open_page()
    page.click(".chip[data-position='7']")
    wait_for(page, "word 8")
    page.fill("#top-k input[type=number]", "5")
    page.press("#top-k input[type=number]", "Enter")
    page.wait_for_function("document.querySelectorAll('#answers li').length === 10")
    page.wait_for_function("window.location.search.includes('top=5')")
    again = open_page(page.url.partition("/?")[2].join(["?", ""]))
    assert shown(again) == shown(page) == expected(FillMask(bundle, 1), [2, 7], 5)
    assert again.inner_text("#answers") == page.inner_text("#answers")


@needs_gradio
def test_the_keyboard_alone_is_enough(open_page: Callable[..., Page], bundle: Path) -> None:
    page, fill = open_page(), FillMask(bundle, 1)
    page.focus("#text textarea")
    for _ in range(9):  # past the sentence and the examples
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.chip')"):
            break
    assert page.evaluate("document.activeElement.textContent") == WORDS[0], "Tab enters the words at the first"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    wait_for(page, "word 12")
    assert shown(page) == expected(fill, [2, 11], 3)
    assert page.evaluate("document.activeElement.dataset.position") == "11", "the focus stays on the word"
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    wait_for(page, "word 1:")
    assert shown(page) == expected(fill, [0, 2, 11], 3)
    said = page.get_by_role("status")
    assert "word 1: “This”" in said.first.inner_text()
    chip = page.get_by_role("button", name="This", exact=True)
    assert chip.get_attribute("aria-pressed") == "true"


@needs_gradio
def test_bad_input_gets_one_friendly_line(open_page: Callable[..., Page]) -> None:
    page = open_page()
    for text, said in (
        ("", "Type a sentence first."),
        ("a model", "Choose one or more words above"),
        ("[MASK]", "add words around it"),
        ("word " * 1001, "shorten it"),
        ("This zebra [MASK] a super", "The model expects at word 3"),
    ):
        page.fill("#text textarea", text)
        wait_for(page, said)
    assert "does not know “zebra”" in page.inner_text("#answers .note")
    for position in range(5):
        chip = f".chip[data-position='{position}']"
        if page.get_attribute(chip, "aria-pressed") == "false":
            page.click(chip)
            page.wait_for_selector(f"{chip}[aria-pressed='true']")  # a click on chips that are being redrawn is lost
    wait_for(page, "Every word is hidden")


@needs_gradio
@pytest.mark.slow
def test_hidden_words_stay_hidden_while_others_are_written(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.fill("#text textarea", SENTENCE.replace("what word", "words"))
    page.wait_for_function("document.querySelectorAll('.chip').length === 12")
    assert page.get_attribute(".chip[data-position='2']", "aria-pressed") == "true"
    page.click("#examples button")
    page.wait_for_function("document.querySelectorAll('.chip').length === 13")
    assert page.input_value("#text textarea") == SENTENCE


@needs_gradio
def test_attention_is_shown_when_unfolded(open_page: Callable[..., Page]) -> None:
    page = open_page()
    assert page.locator("#heat img").count() == 0
    page.get_by_role("button", name="What the attention heads look at").click()
    page.wait_for_selector("#heat img")
    first = page.get_attribute("#heat img", "src")
    page.wait_for_function("document.querySelector('#heat img').naturalWidth === 13")
    page.locator("#attention input[type=range]").nth(1).press("ArrowRight")
    page.wait_for_function("first => document.querySelector('#heat img').src !== first", arg=first)
    assert "head 1" in page.inner_text("#heat figcaption")
    page.click(".chip[data-position='9']")
    page.wait_for_function("document.querySelector('#heat .said')?.textContent.includes('Token 10')")
    assert "not why the model answers" in page.inner_text("#attention")


@needs_gradio
@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_a_narrow_screen_holds_everything(open_page: Callable[..., Page], scheme: str) -> None:
    long = "Pneumonoultramicroscopicsilicovolcanoconiosis" * 3
    page = open_page(f"?text=model+{long}+a+super&hide=0", viewport={"width": 375, "height": 700}, color_scheme=scheme)
    page.get_by_role("button", name="What the attention heads look at").click()
    page.wait_for_selector("#heat img")
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    colours = "e => [getComputedStyle(e).color, getComputedStyle(document.body).backgroundColor]"
    text, back = (brightness(colour) for colour in page.eval_on_selector("#answers .filled", colours))
    assert abs(text - back) > 150
    assert (back < 60) == (scheme == "dark")


def brightness(colour: str) -> float:
    red, green, blue = (float(part) for part in colour.partition("(")[2].rstrip(")").replace(",", " ").split()[:3])
    return 0.3 * red + 0.59 * green + 0.11 * blue


@needs_gradio
@pytest.mark.slow
def test_a_bundle_without_attention_says_so(sentence_bundles: dict[str, Path]) -> None:
    from mlm_onnx.demo.app import Demo, build

    said = str(build(Demo(FillMask(sentence_bundles["int8"], 1))).get_config_file())
    assert "has no attention graph" in said
    assert "learned it by heart" not in said, "this one has random weights"


@needs_gradio
@pytest.mark.slow
def test_an_explanation_that_comes_too_late_is_dropped(
    sentence_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradio as gr
    from mlm_onnx.demo.app import Demo, Session

    demo, session = Demo(FillMask(sentence_bundles["int8"], 1)), Session()
    why = demo.facts.why
    demo.answer(session, SENTENCE, [2], 3)
    assert "Word 3" in demo.explain(session)
    assert demo.explain(session) == gr.skip(), "it is shown already"

    def slowly(asked: Any) -> Any:
        demo.answer(session, SENTENCE, [4], 3)
        return why(asked)

    demo.answer(session, SENTENCE, [3], 3)
    monkeypatch.setattr(demo.facts, "why", slowly)
    assert demo.explain(session) == gr.skip()
    monkeypatch.undo()
    assert "Word 5" in demo.explain(session)


@needs_gradio
def test_a_sentence_is_tokenised_once(sentence_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A keystroke reads the sentence, and the sentence with its words hidden, with the predictor's own reader."""
    from mlm_onnx.demo.app import Demo, Session

    demo, session = Demo(FillMask(sentence_bundles["int8"], 1)), Session()
    demo.answer(session, "This model creates", [1], 3)
    read, real = [], Reader.encode

    def encode(reader: Reader, text: str) -> Text:
        read.append(text)
        return real(reader, text)

    monkeypatch.setattr(Reader, "encode", encode)
    demo.write(session, "This model creates a", 3)
    assert read == ["This model creates a", "This [MASK] creates a"]
    assert session.hidden == (1,)
    read.clear()
    demo.write(session, "This [MASK] creates a", 3)
    assert read == ["This [MASK] creates a"] * 2, "once as a sentence, once as a query"


@needs_gradio
def test_ctrl_c_ends_it_and_a_taken_port_is_one_line(
    bundle: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    line = [sys.executable, "-m", "mlm_onnx", "demo", str(bundle), "--port", str(port)]
    with serving(line, port, env=environment, start_new_session=True) as server:
        assert main(["demo", str(bundle), "--port", str(port)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert f"--port {port}" in err
        assert "in use; choose another --port" in err
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 130
        assert server.stdout.read().splitlines() == [f"http://127.0.0.1:{port}  (Ctrl-C to stop)", "stopped"]


def test_without_gradio_demo_says_what_to_install(tmp_path: Path, environment: dict[str, str]) -> None:
    script = (
        "import sys\nsys.modules['gradio'] = None\n"
        "from mlm_onnx.__main__ import main\nsys.exit(main(['demo', 'bundle']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'mlm-onnx[demo]'" in done.stderr


@needs_gradio
@pytest.mark.parametrize(
    ("options", "said"),
    [(["--port", "99999"], "the largest is 65535"), (["--host", "no.such.host.invalid"], "--host no.such")],
)
def test_an_address_that_is_not_valid(
    options: list[str], said: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(bundle), *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@needs_gradio
def test_a_folder_that_is_not_a_bundle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", str(tmp_path), "--port", str(free_port())]) == 2
    assert "manifest.json" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
