"""The latency benchmark gives every side the same texts of the length it names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import latency  # noqa: E402


def test_texts_have_the_length_they_say(tmp_path: Path) -> None:
    tokenizer = latency.made_up_words(500)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    made = latency.texts(tmp_path / "tokenizer.json", 18, 3)
    assert made == latency.texts(tmp_path / "tokenizer.json", 18, 3)
    assert len(set(made)) == 3
    for text in made:
        encoded = tokenizer.encode(text)
        assert len(encoded.ids) == 18
        assert encoded.tokens.count("[MASK]") == 1
        assert "[UNK]" not in encoded.tokens


def test_percentiles_by_hand() -> None:
    assert latency.percentiles([0.001] * 98 + [0.002, 0.003]) == pytest.approx({"p50": 1, "p90": 1, "p99": 2.01})


@pytest.mark.slow
def test_without_peers_it_measures_ours_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "latency.py"), "--shape", "small", "--turns", "1"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "left out: peers" in done.stdout
    sides = json.loads(out.read_text())["results"][0]["sides"]
    assert set(sides) == {"ours int8", "ours fp32"}
    assert sides["ours int8"]["artifact_bytes"] < 0.3 * sides["ours fp32"]["artifact_bytes"]
    assert out.with_suffix(".png").stat().st_size > 10_000
