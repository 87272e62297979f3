"""Evaluation: the same figures at any batch size, masks fixed by seed and row, and exact pseudo-log-likelihood."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_mlm import evaluate
from jax_mlm.config import DataConfig, ModelConfig
from jax_mlm.data.tokenizer import load_tokenizer, train_tokenizer, vocabulary_of
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import init_params, make_forward
from jax_mlm.presets import PRESETS
from jax_mlm.run.checkpoint import load_params, open_checkpoints, save
from jax_mlm.run.directory import read_run, write_run
from jax_mlm.train.step import TrainState

LINES = [f"line {i} says that {i * 7 % 13} birds and {i * 5 % 11} fish met near the old bridge" for i in range(60)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run directory with random weights, loud enough to have opinions."""
    run = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(iter(LINES), "wordpiece", 64)
    tokenizer.save(str(run / "tokenizer.json"))
    model = ModelConfig(vocab_size=64, width=32, layers=1, heads=2, ff_width=48, max_length=64)
    corpus = DataConfig(length=48, cache=str(tmp_path_factory.mktemp("cache")))
    write_run(run, replace(PRESETS["tiny"], model=model, corpus=corpus), {}, {})
    params = jax.tree.map(
        lambda x: 8 * x if x.ndim == 2 else x, jax.jit(partial(init_params, model))(jax.random.key(1))
    )
    with open_checkpoints(run) as manager:
        save(manager, TrainState(np.int32(3), params, {}), {"step": 3, "elapsed": 0.0, "horizon": 3}, 1.0)
    (run / "text.txt").write_text("\n".join(LINES))
    return run


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = evaluate.main([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def figures(capsys, run, *arguments) -> dict:
    code, out, err = call(capsys, run, "--data", run / "text.txt", "--json", *arguments)
    assert code == 0, err
    return json.loads(out)


def test_figures_do_not_depend_on_the_batch_size(run, capsys):
    one, other = figures(capsys, run, "--batch", 3), figures(capsys, run)
    assert one["targets"] > 100
    assert one["perplexity"] == pytest.approx(math.exp(one["loss"]))
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
    assert [s["text"] for s in scored] == LINES
    config = read_run(run)
    _, params = load_params(run)
    tokenizer = load_tokenizer(run / "tokenizer.json")
    vocabulary, forward = vocabulary_of(tokenizer), jax.jit(make_forward(config.model))
    ids = np.array(tokenizer.encode(LINES[4]).ids, np.int32)
    at = [i for i, token in enumerate(ids) if token not in vocabulary.special]
    total = 0.0
    for i in at:
        hidden = ids.copy()
        hidden[i] = vocabulary.mask
        inputs = Inputs(hidden[None], np.ones((1, len(ids)), np.int32), np.arange(len(ids), dtype=np.int32)[None])
        total += float(jax.nn.log_softmax(forward(params, inputs, np.array([[i]]))[0, 0])[ids[i]])
    assert scored[4]["tokens"] == len(at)
    assert scored[4]["pll"] == pytest.approx(total, rel=1e-5)


def test_bad_input_is_one_line(run, capsys, tmp_path):
    (tmp_path / "long.txt").write_text("bird " * 500)
    for arguments, named in [
        ([tmp_path, "--data", run / "text.txt"], "not a run directory"),
        ([run], "--data"),
        ([run, "--data", tmp_path / "none.txt"], "none.txt"),
        ([run, "--data", tmp_path / "long.txt", "--pll"], "document 1"),
    ]:
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error:")
        assert err.count("\n") == 1
        assert named in err
