"""The demo's page of fine-tuned models in a real Chromium: bars, coloured spans and a marked answer, as predicted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlm_onnx import Answer, Classify, Tag
from support.servers import free_port, needs_gradio, serving
from support.tasks import TASKS, task_bundle

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_gradio
TEXT = "The cat <b>was</b> in the garden & again"


@contextmanager
def opened(name: str, folder: Path, chromium: Browser, environment: dict[str, str]) -> Iterator[Page]:
    """Serve a bundle of the task, and open its page; nothing may go wrong in it."""
    task_bundle(folder, TASKS[name], examples=[TEXT])
    port, errors = free_port(), []
    line = [sys.executable, "-m", "mlm_onnx", "demo", str(folder), "--port", str(port), "--threads", "1"]
    with serving(line, port, env=environment):
        context = chromium.new_context()
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")
        yield page
        context.close()
    assert errors == []


@pytest.mark.slow
def test_labels_are_bars(tmp_path: Path, chromium: Browser, environment: dict[str, str]) -> None:
    with opened("classify", tmp_path / "b", chromium, environment) as page:
        page.get_by_role("button", name="The cat").click()
        page.wait_for_selector("#answers .card li")
        rows = page.eval_on_selector_all(
            "#answers .card li",
            "rows => rows.map(row => [row.querySelector('.token').textContent, "
            "Number(row.querySelector('.share').dataset.probability)])",
        )
        expected = Classify(tmp_path / "b")(TEXT)["labels"]
        assert [tuple(row) for row in rows] == [(each["label"], each["probability"]) for each in expected]
        assert page.get_by_role("textbox").input_value() == TEXT
        page.get_by_role("textbox").fill(" ")
        page.wait_for_selector("#answers .problem")


@pytest.mark.slow
def test_entities_are_coloured(tmp_path: Path, chromium: Browser, environment: dict[str, str]) -> None:
    with opened("tag", tmp_path / "b", chromium, environment) as page:
        page.get_by_role("textbox").fill(TEXT)
        page.wait_for_selector("#answers .filled")
        found = page.eval_on_selector_all(
            "#answers .entity", "marks => marks.map(mark => [Number(mark.dataset.start), Number(mark.dataset.end)])"
        )
        expected = Tag(tmp_path / "b")(TEXT)["entities"]
        assert [tuple(span) for span in found] == [(each["start"], each["end"]) for each in expected] != []
        assert page.locator("#answers .filled b").count() == 0, "the text is escaped"


@pytest.mark.slow
def test_the_answer_is_marked(tmp_path: Path, chromium: Browser, environment: dict[str, str]) -> None:
    with opened("answer", tmp_path / "b", chromium, environment) as page:
        page.get_by_label("Context").fill(TEXT)
        page.wait_for_selector("#answers .problem")
        page.get_by_label("Question").fill("where?")
        page.wait_for_selector("#answers mark")
        assert page.locator("#answers mark").text_content() == Answer(tmp_path / "b")("where?", TEXT)["answer"]


@pytest.mark.slow
def test_what_no_window_has_room_for_is_named() -> None:
    from mlm_onnx.demo.tasks import bars, marked

    found = {"question": "who?", "answer": None, "start": None, "end": None, "probability": 0.5}
    assert "the last 3 tokens of the question" in marked({**found, "left_out": 3}, "A text.")  # type: ignore[typeddict-item]
    assert "the last 2 tokens of the first text" in bars({"text": "a", "value": 0.5, "left_out": 2})
    assert "Left out" not in marked(found, "A text.") + bars({"text": "a", "value": 0.5})  # type: ignore[arg-type]
