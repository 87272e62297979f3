"""The wheels hold every file of every room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.version import Version
from support.paths import ROOT

PROJECTS = ((".", "jax_mlm"), ("export", "mlm_onnx"))
MADE = ("__pycache__", "*.egg-info", "build", ".*")
BUILDS = Version(version("setuptools") if find_spec("setuptools") else "0") >= Version("77")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Both wheels: those of $JAX_MLM_WHEELS, or made here."""
    if given := os.environ.get("JAX_MLM_WHEELS"):
        return Path(given)
    if not BUILDS:
        pytest.skip("needs setuptools 77 to build wheels, or $JAX_MLM_WHEELS, a folder that holds them")
    for project, package in PROJECTS:
        source = tmp_path / package
        source.mkdir()
        shutil.copytree(ROOT / project / package, source / package, ignore=shutil.ignore_patterns(*MADE))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            if (ROOT / project / name).exists():
                shutil.copy(ROOT / project / name, source)
        line = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
        done = subprocess.run([sys.executable, *line], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.mark.slow
def test_every_file_of_a_package_is_in_its_wheel(wheels: Path) -> None:
    for project, package in PROJECTS:
        (wheel,) = wheels.glob(f"{package}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            held = {name for name in archive.namelist() if name.startswith(f"{package}/")}
        parts = [file.relative_to(ROOT / project) for file in (ROOT / project / package).rglob("*") if file.is_file()]
        there = {part.as_posix() for part in parts if not {"__pycache__", ".DS_Store"} & set(part.parts)}
        assert len(there) > 30
        assert held == there
