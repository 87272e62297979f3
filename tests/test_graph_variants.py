"""The benchmark of graph variants compares graphs that compute the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlm_onnx.graph import FP32
from test_graph import BERT, randomised

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from graph_variants import FORMS, LENGTHS, SHIPPED, Setting, ask, opened, queries, reformed  # noqa: E402


@pytest.mark.parametrize("name", [name for name in FORMS if name != SHIPPED])
def test_every_form_answers_alike(name: str, tmp_path: Path) -> None:
    params = randomised(BERT)
    for title in (SHIPPED, name):
        reformed(BERT, params, FP32, FORMS[title]).write(tmp_path / f"{title == SHIPPED}.onnx")
    query = queries(BERT.vocab_size, 18, 2)
    shipped, other = (ask(opened(tmp_path / f"{which}.onnx", Setting(1)).session, *query) for which in (True, False))
    assert shipped.std() > 1
    np.testing.assert_allclose(other, shipped, atol=0.02 if "approximate" in name else 1e-4)


@pytest.mark.slow
def test_it_measures_and_says_nothing_of_the_machine(tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "benchmarks" / "graph_variants.py"), "--shape", "tiny", "--dtype", "int8"]
    out = tmp_path / "out.json"
    done = subprocess.run([*line, "--turns", "1", "--out", str(out)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert str(tmp_path) not in out.read_text()
    (result,) = json.loads(out.read_text())["results"]
    assert set(result["forms"]) == set(FORMS)
    for group in ("forms", "settings"):
        assert result[group][SHIPPED]["over_shipped"] == {"short": 1, "long": 1}
        assert all(row["ms"]["long"]["p50"] > 0 for row in result[group].values())
    assert {"threads 1", "threads 4", "spinning"} <= set(result["settings"])
    for kind in LENGTHS:
        assert result["batches"][kind]["answers"]["8"]["same_first_answer"] > 0.5
