"""The import contracts of pyproject.toml hold, and each of them notices what it forbids."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the packages below a folder."""
    command = [sys.executable, "-c", LINT, "--no-cache", "--no-logo"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "export")])}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_imports_keep_every_contract() -> None:
    checked = lint(ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "0 broken" in checked.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("jax_mlm/data/packing.py", "import jax_mlm.train.loop", "jax_mlm: imports run downwards"),
        ("export/mlm_onnx/bundle/about.py", "import mlm_onnx.answer.pieces", "mlm_onnx: imports run downwards"),
        ("jax_mlm/model/ops/dense.py", "import jax_mlm.model.encoder", "No import circles"),
        ("export/mlm_onnx/answer/pieces.py", "def f():\n    import onnx", "Answering needs no training framework"),
        ("jax_mlm/evaluate.py", "import mlm_onnx.answer.predictor", "Training does not know bundles"),
    ],
)
def test_a_forbidden_import_is_noticed(file: str, line: str, contract: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("jax_mlm", "export/mlm_onnx"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=IGNORED)
    with (tmp_path / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    checked = lint(tmp_path)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert f"{contract} BROKEN" in checked.stdout
