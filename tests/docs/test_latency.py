"""The latency benchmark gives every side the same texts of the length it names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import latency
from common import machine, random_models


def test_texts_have_the_length_they_say(tmp_path: Path) -> None:
    tokenizer = random_models.made_up_words(500)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    made = random_models.texts(tmp_path / "tokenizer.json", 18, 3)
    assert made == random_models.texts(tmp_path / "tokenizer.json", 18, 3)
    assert len(set(made)) == 3
    for text in made:
        encoded = tokenizer.encode(text)
        assert len(encoded.ids) == 18
        assert encoded.tokens.count("[MASK]") == 1
        assert "[UNK]" not in encoded.tokens


def test_percentiles_by_hand() -> None:
    assert latency.percentiles([0.001] * 98 + [0.002, 0.003]) == pytest.approx({"p50": 1, "p90": 1, "p99": 2.01})


def test_the_floor_by_hand() -> None:
    """One layer of width 2, feed-forward 3, vocabulary 5, of two tokens, one of them asked."""
    config = SimpleNamespace(width=2, ff_width=3, gated=False, layers=1, embedding_width=None, vocab_size=5)
    machine_facts = {"bytes_per_second": 1e3, "int8_operations_per_second": 1e3, "fp32_operations_per_second": 1e3}
    found = machine.floor_ms(config, 2, "int8", 100, machine_facts)
    keys_values, query_out, feed_forward, head, table = 2 * 2 * (2 * 2), 2 * (2 * 2), 2 * (2 * 3), 2 * 2, 5 * 2
    attention = 2 * 2 * 2  # scores and mixing: 2 · width · tokens · asked
    products = keys_values + query_out + feed_forward + head + table + attention
    assert found == pytest.approx({"reading": 100, "computing": 2 * products, "floor": 2 * products})
    assert machine.floor_ms(config, 2, "int8", 1000, machine_facts)["floor"] == 1000


def test_records_say_nothing_of_where_they_were_made() -> None:
    line = [
        "/home/me/jax/benchmarks/latency.py",
        "--peer-python",
        "/home/me/peers/bin/python",
        "--out=/x/y.json",
        "a/b",
    ]
    assert machine.command(line) == "python benchmarks/latency.py --peer-python python --out=y.json a/b"
    assert machine.shortened("File '/usr/lib/x.py': no /tmp/z, 1/2") == "File 'x.py': no z, 1/2"


@pytest.mark.slow
def test_without_peers_it_measures_ours_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "latency.py"), "--shape", "small", "--turns", "1"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "left out: peers" in done.stdout
    assert str(tmp_path) not in out.read_text()
    sides = json.loads(out.read_text())["results"][0]["sides"]
    assert "× the floor of" in done.stdout
    assert sides["ours int8"]["floor_ms"]["short"]["reading"] < sides["ours fp32"]["floor_ms"]["short"]["reading"]
    assert set(sides) == {"ours int8", "ours fp32"}
    assert sides["ours int8"]["artifact_bytes"] < 0.3 * sides["ours fp32"]["artifact_bytes"]
    assert out.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.slow
def test_operators_make_up_what_a_query_takes(tmp_path: Path) -> None:
    import operators

    for title, found in operators.measure("tiny", tmp_path).items():
        within = sum(found.values()) - found["session"]
        assert 0 < within <= found["session"], title
        assert ("DynamicQuantizeMatMul" in found) == ("int8" in title)
