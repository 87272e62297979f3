"""`convert --for space`: a folder whose app.py serves the page by itself, written around a bundle."""

from __future__ import annotations

import os
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from mlm_onnx import FillMask
from mlm_onnx.__main__ import main
from mlm_onnx.answer.attention import carries_attention
from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.bundle.read import open_bundle
from mlm_onnx.convert.space import NEEDED, check_space
from support.paths import ROOT
from support.servers import free_port, needs_gradio, serving

from jax_mlm.presets import SENTENCE


@pytest.fixture(scope="module")
def space(sentence_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space"
    assert main(["convert", str(sentence_run.path), str(path), "--for", "space"]) == 0
    return path


def test_the_folder_is_a_space(space: Path) -> None:
    assert {each.name for each in space.iterdir()} == {"README.md", "app.py", "requirements.txt", "bundle", "mlm_onnx"}
    _, matter, body = (space / "README.md").read_text(encoding="utf-8").split("---\n")
    facts = dict(line.split(": ", 1) for line in matter.splitlines())
    assert (facts["sdk"], facts["app_file"]) == ("gradio", "app.py")
    assert facts["sdk_version"].count(".") == 2
    assert "learned it by heart" in body
    assert carries_attention(open_bundle(space / "bundle"))
    query = SENTENCE.replace("creates", "[MASK]")
    assert FillMask(space / "bundle")(query)["masks"][0]["candidates"][0]["text"] == SENTENCE


def test_it_asks_for_what_the_package_asks_for(space: Path) -> None:
    declared = tomllib.loads((ROOT / "export" / "pyproject.toml").read_text())["project"]
    assert list(NEEDED) == declared["dependencies"]
    assert (space / "requirements.txt").read_text().split()[:-1] == declared["dependencies"]
    assert (space / "requirements.txt").read_text().split()[-1].startswith("gradio==")


@pytest.mark.slow
@needs_gradio
def test_its_app_runs_alone(space: Path, tmp_path: Path) -> None:
    """As a host runs it: from its own folder, with the host's variables, and the copy of the package."""
    copied = space / "mlm_onnx" / "demo" / "app.py"
    copied.write_text(
        copied.read_text(encoding="utf-8").replace('"Fill the mask"', '"From the copy"'), encoding="utf-8"
    )
    port = free_port()
    hosted = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    hosted |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
    with serving([sys.executable, "app.py"], port, cwd=space, env=hosted):
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=30).read().decode("utf-8")
    assert "learned it by heart" in page
    assert "From the copy" in page


def test_a_cloned_space_keeps_its_own_texts(space: Path, sentence_run: Any) -> None:
    (space / "README.md").write_text("mine")
    (space / ".gitattributes").write_text("*.data filter=lfs")
    assert main(["convert", str(sentence_run.path), str(space), "--for", "space"]) == 0
    assert (space / "README.md").read_text() == "mine"
    assert (space / ".gitattributes").exists()


def test_nothing_else_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="is a bundle"):
        check_space(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "letters").mkdir()
    with pytest.raises(BundleError, match=r"contains letters"):
        check_space(tmp_path)
    (tmp_path / "letters").rename(tmp_path / "mlm_onnx")
    with pytest.raises(BundleError, match="not the copy"):
        check_space(tmp_path)
    (tmp_path / "mlm_onnx").rmdir()
    assert check_space(tmp_path) == tmp_path / "bundle"
