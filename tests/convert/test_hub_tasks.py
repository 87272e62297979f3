"""optimum and transformers.js answer from the bundles of fine-tuned runs as they are, and as our predictors do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from mlm_onnx import Answer, Classify, Tag
from mlm_onnx.bundle.layout import HUB_GRAPH
from support.bundles import TEXTS
from support.runs import run_json
from support.tasks import TASKS, task_bundle

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HERE = Path(__file__).parent
NAMED = {
    "text-classification": TASKS["classify"],
    "token-classification": TASKS["tag"],
    "question-answering": replace(TASKS["answer"], max_answer=15),
}
FAMILIES = {"modernbert": "bpe", "bert": "wordpiece", "roberta": "bpe", "albert": "unigram", "distilbert": "wordpiece"}
LINES = [text.lower() for text in TEXTS[:4]]
NO_CLASS = (("question-answering", "modernbert"), ("token-classification", "albert"))
"""What transformers.js cannot load."""
USUAL = [(task, "distilbert") for task in NAMED]
IN_CHROMIUM = [
    pytest.param(*case, marks=() if case in USUAL else pytest.mark.slow)
    for case in ((task, family) for task in NAMED for family in FAMILIES)
    if case not in NO_CLASS
]
"""One family in the default suite; the others are slow tests."""


@pytest.fixture(scope="module", params=[(task, family) for task in NAMED for family in FAMILIES], ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """Return a task, a family and a bundle of them for the hub."""
    task, family = request.param
    folder = tmp_path_factory.mktemp("hub") / family
    task_bundle(folder, NAMED[task], FAMILIES[family], family, layout="hub")
    return task, family, folder


def asked(task: str) -> list[Any]:
    short = [" ".join(text.split()[:5]) for text in LINES]
    return [("the cat", text) for text in short] if task == "question-answering" else short


def test_optimum_answers_alike(optimum: str, made: tuple[str, str, Path]) -> None:
    task, _, folder = made
    found = run_json([optimum, str(HERE / "hub_tasks.py"), task, str(folder), json.dumps(asked(task))])
    if task == "text-classification":
        check_labels(found, folder)
    elif task == "token-classification":
        for theirs, ours in zip(found, Tag(folder)(asked(task)), strict=True):
            assert [(e["entity_group"], *trimmed(ours["text"], e)) for e in theirs] == [
                (e["label"], e["start"], e["end"]) for e in ours["entities"]
            ]
            np.testing.assert_allclose(
                [e["score"] for e in theirs], [e["probability"] for e in ours["entities"]], atol=1e-3
            )
    else:
        for theirs, (question, context) in zip(found, asked(task), strict=True):
            ours = Answer(folder)(question, context)
            assert trimmed(context, theirs) == (ours["start"], ours["end"])
            assert theirs["answer"].strip() == ours["answer"]


def check_transformers_js(found: Any, task: str, folder: Path) -> None:
    if task == "text-classification":
        check_labels(found, folder)
    elif task == "token-classification":  # without an aggregation: the tags of pieces that are not O
        for theirs, ours in zip(found, Tag(folder)(asked(task)), strict=True):
            tags = {each["entity"].partition("-")[2] for each in theirs}
            assert {each["label"] for each in ours["entities"]} <= tags
    else:
        for theirs, (question, context) in zip(found, asked(task), strict=True):
            assert theirs["answer"].replace(" ", "") in context.replace(" ", ""), question


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
def test_transformers_js_answers_alike(node_modules: Path, made: tuple[str, str, Path]) -> None:
    task, family, folder = made
    if (task, family) in NO_CLASS:
        pytest.skip("transformers.js has no such class")
    line = ["node", str(HERE / "hub_tasks.mjs"), str(node_modules), task, str(folder), json.dumps(asked(task))]
    check_transformers_js(run_json(line), task, folder)


IN_A_BROWSER = """async ([task, texts]) => {
  const { pipeline, env } = await import('/modules/@huggingface/transformers/dist/transformers.min.js');
  Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: '/' });
  Object.assign(env.backends.onnx.wasm, { wasmPaths: '/modules/onnxruntime-web/dist/', numThreads: 1 });
  const ask = await pipeline(task, 'bundle', { dtype: 'fp32', device: 'wasm' });
  const options = task === 'text-classification' ? { top_k: null } : {};
  const found = [];
  for (const text of texts) found.push(await (Array.isArray(text) ? ask(...text) : ask(text, options)));
  return found;
}"""


@pytest.mark.parametrize(("task", "family"), IN_CHROMIUM)
def test_transformers_js_answers_alike_in_chromium(
    task: str, family: str, node_modules: Path, chromium: Browser, serve: Callable[[Path], str], tmp_path: Path
) -> None:
    (tmp_path / "modules").symlink_to(node_modules)
    (tmp_path / "index.html").write_text("<!doctype html><title>empty</title>")
    folder = task_bundle(tmp_path / "bundle", NAMED[task], FAMILIES[family], family, layout="hub")
    address, page, requests = serve(tmp_path), chromium.new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    found = page.evaluate(IN_A_BROWSER, [task, asked(task)])
    page.close()
    check_transformers_js(found, task, folder)
    assert f"{address}/bundle/{HUB_GRAPH}" in requests
    assert all(url.startswith((address, "blob:", "data:")) for url in requests), "everything comes from here"


def trimmed(text: str, found: Any) -> tuple[int, int]:
    """Return their span without the white space that their tokens begin with."""
    inside = text[found["start"] : found["end"]]
    return found["end"] - len(inside.lstrip()), found["end"]


def check_labels(found: Any, folder: Path) -> None:
    for theirs, ours in zip(found, Classify(folder)(asked("text-classification")), strict=True):
        assert [each["label"] for each in theirs] == [each["label"] for each in ours["labels"]]
        np.testing.assert_allclose(
            [each["score"] for each in theirs], [each["probability"] for each in ours["labels"]], atol=1e-3
        )
