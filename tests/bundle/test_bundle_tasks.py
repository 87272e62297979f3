"""Hostile and damaged bundles of fine-tuned models: refused in one line, or answered as any other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlm_onnx
import pytest
from mlm_onnx.bundle.layout import ANSWER, CLASSIFY, TAG, TASKS, BundleError, QueryError
from support.tasks import TASKS as HEADS
from support.tasks import task_bundle

NAMES = {CLASSIFY: "classify", TAG: "tag", ANSWER: "perhaps"}
QUERIES: dict[str, Callable[[Any], Any]] = {
    CLASSIFY: lambda ask: ask(["a cat", "was in " * 40]),
    TAG: lambda ask: ask(["a cat", "was in " * 40]),
    ANSWER: lambda ask: ask(["who?", "cat " * 60], "The cat was in the garden. " * 9),
}
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 23, 24, 1 << 16, 1 << 40, 1.5, "", "x", "O", "B-x", [], {}, [None], [1, 2],
    ["a", "a"], ["O", "X-y"], ["a"] * 3, [[]], ["O"] * 20_000, ["x" * 5000, "y"], ["a", "b", "c"], ["O", "B-x"],
    {"overlap": "x"},
    {"overlap": -1}, {"overlap": 12}, {"overlap": 1 << 30}, {"max_tokens": 0}, {"max_tokens": 1 << 30},
    {"max_tokens": 2},
    {"text": ["x"], "pair": None, "label": "x" * 5000},
    {"name": "x"}, [{"name": "x"}], "multi", "regression", "text-classification", "fill-mask",
)  # fmt: skip
FIELDS = (
    "labels",
    "problem",
    "pair",
    "windows",
    "answers",
    "columns",
    "task",
    "graphs",
    "limits",
    "tokens",
    "vocab_size",
    "files",
)


@pytest.fixture(scope="module", params=list(NAMES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return a task and its bundle."""
    folder = tmp_path_factory.mktemp("tasks") / "b"
    return request.param, task_bundle(folder, HEADS[NAMES[request.param]], family="distilbert")


def outcome(task: str, folder: Path) -> str:
    """Ask the bundle; what is wrong with it may only come as one line."""
    said = ""
    try:
        predictor = getattr(mlm_onnx, TASKS[task].predictor)(folder, threads=1)
        for each in QUERIES[task](predictor):
            json.dumps(each, allow_nan=False)
    except (BundleError, QueryError) as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 2000
    return "refused" if said else "answered"


def test_strange_manifests_are_refused_in_one_line_or_answer(made: tuple[str, Path], tmp_path: Path) -> None:
    task, source = made
    assert outcome(task, source) == "answered"
    copy = Path(shutil.copytree(source, tmp_path / "b"))
    whole = json.loads((source / "manifest.json").read_text())
    outcomes = []
    for field in FIELDS:
        for value in STRANGE:
            (copy / "manifest.json").write_text(json.dumps({**whole, field: value}))
            outcomes.append((field, outcome(task, copy)))
    for field in {"labels", "windows", "task", "limits", "tokens", "files", "graphs"}:
        (copy / "manifest.json").write_text(json.dumps({k: v for k, v in whole.items() if k != field}))
        assert outcome(task, copy) == "refused", field
    assert len(outcomes) >= 400
    assert all(said == "refused" for field, said in outcomes if field in ("limits", "files", "windows"))
    assert all(said == "answered" for field, said in outcomes if field == "columns")


def test_damaged_files_are_refused(made: tuple[str, Path], tmp_path: Path) -> None:
    task, source = made
    copy = Path(shutil.copytree(source, tmp_path / "b"))
    for name in TASKS[task].required[1:2] + TASKS[task].required[3:]:
        content = (source / name).read_bytes()
        for place in (0, len(content) // 3, len(content) - 1):
            (copy / name).write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            assert outcome(task, copy) == "refused", name
        (copy / name).write_bytes(content[:-1])
        assert outcome(task, copy) == "refused", name
        (copy / name).unlink()
        assert outcome(task, copy) == "refused", name
        (copy / name).write_bytes(content)
    assert outcome(task, copy) == "answered"
