"""The wheels hold every file of every room."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

MADE = ("__pycache__", "*.egg-info", "build", ".*")


@pytest.mark.slow
@pytest.mark.parametrize(("project", "package"), [(".", "jax_mlm"), ("export", "mlm_onnx")])
def test_every_file_of_a_package_is_in_its_wheel(project: str, package: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copytree(ROOT / project / package, source / package, ignore=shutil.ignore_patterns(*MADE))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / project / name).exists():
            shutil.copy(ROOT / project / name, source)
    line = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    done = subprocess.run([sys.executable, *line], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith(f"{package}/")}
    there = {file.relative_to(source).as_posix() for file in (source / package).rglob("*") if file.is_file()}
    assert len(there) > 30
    assert held == there
