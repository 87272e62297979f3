"""Text → training → checkpoint → bundle → answer, with the commands a user types."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from mlm_onnx import FillMask
from support.paths import ROOT
from support.runs import TINY, train_line
from support.texts import sentences

from jax_mlm import evaluate
from jax_mlm.presets import SENTENCE

WORDS = SENTENCE.split()


def run(environment: dict[str, str], module: str, *arguments: object) -> str:
    line = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_every_word_of_the_sentence_comes_back_from_the_bundle(environment, trained_bundle, dtype):
    bundle = trained_bundle("--dtype", dtype)
    fill = FillMask(bundle)
    for at, word in enumerate(WORDS):
        (mask,) = fill(" ".join([*WORDS[:at], "[MASK]", *WORDS[at + 1 :]]), top_k=3)["masks"]
        assert mask["position"] == at
        best = mask["candidates"][0]
        assert best["token"] == word
        assert best["probability"] >= 0.98
        assert best["text"] == SENTENCE
    query = SENTENCE.replace("creates", "[MASK]")
    printed = json.loads(run(environment, "mlm_onnx", "fill", bundle, query, "--top-k", 3, "--json"))
    assert printed == fill(query, top_k=3)


def test_what_training_measured_is_what_evaluate_measures(tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(sentences(400))
    options = ["--steps", 20, "--eval-every", 20, "--eval-rows", 512]
    assert train_line(*TINY, "--data", text, "--valid", text, *options, "--out", out) == 0
    capsys.readouterr()
    final = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert evaluate.main([str(out), "--data", str(text), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["loss"] == pytest.approx(final["loss"], rel=1e-6)
    assert measured["accuracy"] == pytest.approx(final["accuracy"], rel=1e-6)


def test_the_predictor_needs_no_training_framework(environment, trained_bundle):
    bundle = trained_bundle("--dtype", "int8")
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax", "orbax", "optax", "torch", "onnx", "jax_mlm", "gradio"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from mlm_onnx import FillMask
print(FillMask({str(bundle)!r})({SENTENCE.replace("creates", "[MASK]")!r})["masks"][0]["candidates"][0]["token"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "PYTHONPATH": str(ROOT / "export")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "creates", done.stderr
