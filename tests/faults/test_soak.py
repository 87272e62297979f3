"""Nothing grows with a run, nor with the queries of a predictor: the bars are those of benchmarks/soak.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

SHORT = {"train": ["--steps", "2000", "--saves", "16"], "predict": ["--queries", "6000"]}


def soak(what: str, environment: dict[str, str], out: Path, *more: str) -> dict[str, Any]:
    line = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), what, "--out", str(out), *more]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=7200, check=False)
    assert out.is_file(), done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("what", SHORT)
def test_nothing_grows(what: str, environment: dict[str, str], tmp_path: Path) -> None:
    """A busy machine takes more time: that bar is for the campaign."""
    found = soak(what, environment, tmp_path / "soak.json", *SHORT[what])["broken"]
    assert [line for line in found if "of the time" not in line] == []


@pytest.mark.campaign
@pytest.mark.parametrize("what", SHORT)
def test_nothing_grows_for_long(what: str, environment: dict[str, str], tmp_path: Path) -> None:
    assert soak(what, environment, tmp_path / "soak.json")["broken"] == []
