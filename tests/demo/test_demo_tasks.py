"""The demo's page of fine-tuned models in a real Chromium: bars, coloured spans and a marked answer, as predicted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
import pytest
from mlm_onnx import Answer, Classify, Tag
from mlm_onnx.convert.asked import Tuned
from mlm_onnx.convert.pipeline import write_bundle
from mlm_onnx.convert.request import Request
from support.bundles import ONE_SHAPE, ORIGIN, piecewise
from support.models import MODELS
from support.servers import free_port, needs_gradio, serving

from jax_mlm.config import TaskConfig
from jax_mlm.model.task_heads import init_task_params

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_gradio
TEXT = "The cat <b>was</b> in the garden & again"
TASKS = {
    "classify": TaskConfig("classify", ("no", "perhaps", "yes <i>")),
    "tag": TaskConfig("tag", ("O", "B-x", "I-x", "B-y", "I-y")),
    "answer": TaskConfig("answer", pair=True, max_answer=6),
}


@contextmanager
def opened(name: str, folder: Path, chromium: Browser, environment: dict[str, str]) -> Iterator[Page]:
    """Serve a bundle of the task, and open its page; nothing may go wrong in it."""
    tokenizer, task = piecewise("wordpiece"), TASKS[name]
    model = replace(MODELS["modernbert"], vocab_size=tokenizer.get_vocab_size())
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_task_params(model, task, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: rng.normal(0.1, 0.4, leaf.shape).astype(np.float32), shapes)
    request = Request("fp32", examples=[TEXT])
    write_bundle(folder, model, params, tokenizer, request, ORIGIN, ONE_SHAPE, Tuned(task, 32))
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
