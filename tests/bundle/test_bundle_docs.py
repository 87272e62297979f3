"""docs/bundle.md names every field of a real manifest and no other, and its script answers from a bundle."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlm_onnx.bundle.read import read_manifest
from mlm_onnx.convert import Request, write_bundle
from support.bundles import ONE_SHAPE, SENTENCE_MODEL, piecewise
from support.models import randomised
from support.paths import ROOT

VARIABLE = {"graphs": "NAME", "files": "NAME", "versions": "PACKAGE", "accuracy": "DTYPE"}
"""Objects whose keys are values."""
WEB = {f"parity.web.DTYPE.{name}" for name in ("max_difference", "rms_difference", "logit_std", "top1_agreement")}
SATURATION = {"on", "tokens", "pairs", "rms_difference", "logit_std", "top1_agreement", "matters"}
OLD = {f"int8.saturation.{name}" for name in SATURATION}
RARELY = {"parity.calibration.before_keeping", "origin.memorised", *WEB, *OLD}
"""Only where int8 cost too much, of runs that know a sentence by heart, in bundles with a page, and in older ones."""


def fields(value: Any, path: str = "", parent: str = "") -> Iterator[str]:
    """Every path to a leaf, as the page writes it."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            name = VARIABLE.get(parent) or ("DTYPE" if key in ("fp32", "int8") and path else key)
            yield from fields(inner, f"{path}.{name}".lstrip("."), key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield path
        for inner in value:
            yield from fields(inner, f"{path}[]", "")
    elif value != {}:
        yield path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the manifest of a bundle with everything in it, and a tokenizer with all special tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("docs"), piecewise("wordpiece")
    (folder / "text.txt").write_text("The cat was in the garden, playing again.\n" * 100)
    model = type(SENTENCE_MODEL)(**{**vars(SENTENCE_MODEL), "vocab_size": tokenizer.get_vocab_size()})
    origin = {"run": "test", "preset": "sentence", "step": 7, "versions": {"numpy": "2"}}
    request = Request(layout="hub", calibration=folder / "text.txt", with_attention=True, examples=["a cat"])
    return write_bundle(folder / "b", model, randomised(model), tokenizer, request, origin, ONE_SHAPE)


def test_every_field_is_described_and_none_that_is_not_there(manifest: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "bundle.md").read_text()
    rows = page.split("## The manifest")[1].split("## ")[0].splitlines()
    described = {name for row in rows if row.startswith("| `") for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert set(fields(manifest)) == described - RARELY


def test_every_file_and_graph_is_described(manifest: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "bundle.md").read_text()
    listed = set(re.findall(r"^\| `([^`]+)`", page.split("## Files")[1].split("## ")[0], re.MULTILINE))
    assert {*manifest["files"], "manifest.json"} == listed - {"index.html"}
    graphs = page.split("## Graphs")[1].split("## ")[0]
    for name, graph in manifest["graphs"].items():
        (row,) = [line for line in graphs.splitlines() if line.startswith((f"| `{name}`", f"| `{name[:5]}*.onnx`"))]
        for port in (*graph["inputs"], *graph["outputs"]):
            assert f"`{port['name']}`" in row
            assert port["dtype"] in row
            assert len(port["meaning"]) > 20


def test_the_scripts_answer_is_creates(trained_bundle: Callable[..., Path], tmp_path: Path) -> None:
    """Run the page's script as it is there, where nothing of this project can be imported."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "bundle.md").read_text(), re.DOTALL)
    (script,) = [block for block in blocks if "onnxruntime.InferenceSession" in block]
    assert len(script.splitlines()) <= 20
    assert "mlm_onnx" not in script
    (tmp_path / "answer.py").write_text(script)
    text = "This model [MASK] a super relationships between the words to predict what word"
    for dtype in ("int8", "fp32"):
        bundle = trained_bundle("--dtype", dtype)
        assert read_manifest(bundle)["dtype"] == dtype
        done = subprocess.run(
            [sys.executable, "-I", tmp_path / "answer.py", bundle, text],
            capture_output=True, text=True, timeout=60, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert re.match(r"creates 9[89]\.\d+%, ", done.stdout)
