"""Evaluation: the same figures at any batch size, masks fixed by seed and row, and exact pseudo-log-likelihood."""

import json
import math

import jax
import numpy as np
import pytest

from jax_mlm import evaluate
from jax_mlm.data.tokenizer import load_tokenizer, vocabulary_of
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import make_forward
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = evaluate.main([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def figures(capsys, run, *arguments, data=None) -> dict:
    code, out, err = call(capsys, run, "--data", data or run / "text.txt", "--json", *arguments)
    assert code == 0, err
    return json.loads(out)


def test_figures_do_not_depend_on_the_batch_size(run, capsys, tmp_path):
    """Whether the last of several batches is full or not, or there are fewer rows than one has."""
    few, lines = tmp_path / "few.txt", (run / "text.txt").read_text().splitlines()
    few.write_text("\n".join(lines[:24]))
    for data, batches in ((run / "text.txt", 2), (few, 1)):
        one = figures(capsys, run, "--batch", 1, data=data)
        assert one["targets"] > 100
        assert one["perplexity"] == pytest.approx(math.exp(one["loss"]))
        assert one["rows"] % 32 != 0
        assert one["rows"] // 32 + 1 == batches
        other = figures(capsys, run, "--batch", 32, data=data)
        assert other["targets"] == one["targets"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert other["accuracy"] == one["accuracy"]


def test_showing_only_mask_tokens_keeps_the_targets_and_changes_the_loss(run, capsys):
    mixed, masked = figures(capsys, run), figures(capsys, run, "--all-mask")
    assert mixed["targets"] == masked["targets"]
    assert mixed["loss"] != masked["loss"]


def test_targets_are_15_percent_of_ordinary_tokens(run, capsys):
    result = figures(capsys, run)
    assert result["targets"] == pytest.approx(0.15 * result["tokens"], rel=0.03)


def test_pseudo_log_likelihood_equals_one_query_a_token(run, capsys):
    code, out, _ = call(capsys, run, "--data", run / "text.txt", "--pll", "--json", "--batch", 5)
    assert code == 0
    scored = [json.loads(line) for line in out.splitlines()]
    lines = (run / "text.txt").read_text().splitlines()
    assert [s["text"] for s in scored] == lines
    config = read_run(run)
    params = jax.device_put(load_params(run)[1])
    tokenizer = load_tokenizer(run / "tokenizer.json")
    vocabulary, forward = vocabulary_of(tokenizer), jax.jit(make_forward(config.model))
    ids = np.array(tokenizer.encode(lines[4]).ids, np.int32)
    at = [i for i, token in enumerate(ids) if token not in vocabulary.special]
    total = 0.0
    for i in at:
        hidden = ids.copy()
        hidden[i] = vocabulary.mask
        inputs = Inputs(hidden[None], np.ones((1, len(ids)), np.int32), np.arange(len(ids), dtype=np.int32)[None])
        logits = np.asarray(forward(params, inputs, np.array([[i]])), np.float64)[0, 0]
        total += logits[ids[i]] - np.log(np.exp(logits).sum())
    assert scored[4]["tokens"] == len(at)
    assert scored[4]["pll"] == pytest.approx(total, rel=1e-5)


def test_bad_input_is_one_line(run, capsys, tmp_path):
    for arguments, named in [
        ([tmp_path, "--data", run / "text.txt"], "not a run directory"),
        ([run], "--data"),
        ([run, "--data", tmp_path / "none.txt"], "none.txt"),
    ]:
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error:")
        assert err.count("\n") == 1
        assert named in err
