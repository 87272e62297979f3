"""`train --init`: training goes on from the weights that are there, with a fresh optimizer."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import MODELS, SHAPE, TWO_FAMILIES, assert_trees_equal, logits_of, softened
from support.rows import prepared
from support.runs import SMALL, save_run, train_line

from jax_mlm.config import MaskConfig, ModelConfig, TrainConfig
from jax_mlm.data.batches import batch_at, pack_rows, split_documents
from jax_mlm.data.sources import expand
from jax_mlm.data.tokenizer import train_tokenizer, vocabulary_of
from jax_mlm.hf.directory import export_hf
from jax_mlm.model.heads import make_forward
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run, read_run_file
from jax_mlm.run.log import read_metrics
from jax_mlm.tasks.masking import make_mask, row_keys
from jax_mlm.tasks.mlm import MaskedBatch, measure
from jax_mlm.train.__main__ import COMMAND
from jax_mlm.train.new_words import with_words
from jax_mlm.train.start import Initial, start_from

LINES = 200
CONSTANT = [*SMALL, "--schedule", "constant", "--warmup", 0]


def started(*arguments: Any) -> tuple[TrainConfig, Initial]:
    """What such a command begins with, without training."""
    return start_from(COMMAND.read([str(word) for word in arguments]))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    words = [a + b for a in ("ba", "de", "fi", "go", "lu", "mer") for b in ("no", "ti", "sa", "pel")]
    path = tmp_path_factory.mktemp("text") / "made.txt"
    path.write_text("".join(" ".join(draw.choices(words, k=9)) + "\n" for _ in range(LINES)))
    return path


@pytest.fixture(scope="module")
def tokenizer(text: Path) -> Any:
    return train_tokenizer(text.read_text().splitlines(), "wordpiece", 64)


def model_of(family: str) -> ModelConfig:
    local = {"layers": 2} if family == "modernbert" else {}  # the first layer is global
    return replace(MODELS[family], **{**SHAPE, **local}, dropout=0.0, attention_dropout=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_the_first_step_has_the_loss_of_the_weights(family: str, text: Path, tokenizer: Any, tmp_path: Path) -> None:
    model = model_of(family)
    params, run, source = softened(model), tmp_path / "run", tmp_path / "hf"
    export_hf(save_run(tmp_path / "from", model, params, tokenizer), source)
    assert train_line("--init", source, "--data", text, "--steps", 1, *CONSTANT, "--out", run) == 0
    config, vocabulary = read_run(run), vocabulary_of(tokenizer)
    assert (config.optim.lr, config.model) == (1e-4, model)
    assert config.optim.optimizer == "adamw", "Muon would turn what is good already"
    files = prepared(expand(config.data, "--data"), tokenizer, config.corpus, tmp_path / "cache")
    train_ids, _ = split_documents(LINES, config.corpus.valid_fraction, config.seed)
    rows = pack_rows(files, vocabulary, 16, "document", train_ids)
    batch = jax.tree.map(jnp.asarray, batch_at(rows, 0, 0, 4))
    keys = row_keys(jax.random.split(jax.random.key(config.seed))[1], 0, batch.rows)
    mask = jax.jit(make_mask(MaskConfig(), vocabulary, 16))
    masked = mask(jax.vmap(jax.random.split)(keys)[:, 0], batch.tokens, batch.words, jnp.float32(0.15))
    expected = jax.jit(partial(measure, make_forward(model)))(params, MaskedBatch(batch, masked))
    first = next(line for line in read_metrics(run) if line["kind"] == "train")
    np.testing.assert_allclose(first["loss"], float(expected.loss_sum / expected.count), rtol=1e-5)
    assert read_run_file(run)["data"]["init"] == {"from": str(source)}


@pytest.mark.slow
def test_it_resumes_without_the_weights_it_began_with(text: Path, tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    model = model_of("roberta")
    save_run(tmp_path / "from", model, softened(model), tokenizer)
    options = ["--init", tmp_path / "from", "--data", text, *CONSTANT]
    assert train_line(*options, "--steps", 5, "--eval-every", 2, "--out", tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for step in (4, 5):
        shutil.rmtree(tmp_path / "parts" / "checkpoints" / str(step))
    shutil.rmtree(tmp_path / "from")
    assert train_line("--resume", "--steps", 5, "--out", tmp_path / "parts") == 0
    assert_trees_equal(load_params(tmp_path / "whole")[1], load_params(tmp_path / "parts")[1])
    assert read_run_file(tmp_path / "parts")["data"]["init"] == {"from": str(tmp_path / "from"), "step": 7}
    shutil.rmtree(tmp_path / "parts" / "checkpoints")
    assert train_line("--resume", "--steps", 9, "--out", tmp_path / "parts") == 2
    assert "has lost its checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("family", TWO_FAMILIES)
def test_new_words_and_more_positions_leave_the_old_answers(
    family: str, text: Path, tokenizer: Any, tmp_path: Path
) -> None:
    model = model_of(family)
    params = softened(model)
    source = save_run(tmp_path / "from", model, params, tokenizer)
    words = tmp_path / "words.txt"
    words.write_text("xylophone\nzebra\n\nb\n")
    more = ["--add-tokens", words, "Quokka", "--max-length", 48]
    config, start = started("--init", source, "--data", text, *SMALL, *more)
    longer, old = start.tokenizer, vocabulary_of(tokenizer).size
    assert [longer.token_to_id(word) for word in ("xylophone", "zebra", "Quokka")] == [old, old + 1, old + 2]
    assert longer.get_vocab_size() == old + 3, "b was a token already"
    assert longer.encode("desa zebra", add_special_tokens=False).ids[-1] == old + 1
    assert longer.encode("desa zebras").ids == tokenizer.encode("desa zebras").ids
    grown, learned = start.model, start.params
    assert grown == config.model == replace(model, vocab_size=128, max_length=48)
    ids = tokenizer.encode("banoti desa").ids
    was, now = logits_of(model, params, ids), logits_of(grown, learned, ids)
    np.testing.assert_allclose(now[:, :old], was[:, :old], atol=1e-4)
    table, means = learned["token_table"], params["token_table"][:old].mean(0)
    assert np.abs(table[old:].mean(0) - means).max() < 0.05, "rows that stood for no token start anew as well"


def test_a_longer_tokenizer_must_keep_the_ids(text: Path, tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    model = replace(model_of("bert"), vocab_size=64)
    save_run(tmp_path / "from", model, softened(model), tokenizer)
    with_words(tokenizer, [f"word{i}" for i in range(10)]).save(str(tmp_path / "longer.json"))
    line = ["--init", tmp_path / "from", "--data", text, *SMALL]
    config, start = started(*line, "--tokenizer", tmp_path / "longer.json")
    assert "10 new tokens in a table of 128 rows (before: 64)" in capsys.readouterr().err
    assert config.model.vocab_size == len(start.params["token_table"]) == 128
    other = json.loads(tokenizer.to_str())
    vocab = other["model"]["vocab"]
    a, b = [token for token in vocab if vocab[token] in (20, 30)]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert train_line(*line, "--tokenizer", tmp_path / "other.json", "--out", tmp_path / "no") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "does not continue" in said
    assert "with id 20 has the id 30 in it" in said


def test_what_contradicts_the_weights_is_one_line(text: Path, tokenizer: Any, tmp_path: Path, capsys: Any) -> None:
    model = model_of("roberta")
    source = save_run(tmp_path / "from", model, softened(model), tokenizer)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    cases = [
        (["--width", 32], "--width 32 contradicts"),
        (["--position-offset", 0], "--position-offset 0 contradicts"),
        (["--gated"], "--gated contradicts"),
        (["--max-length", 16], "--max-length 16 is less than the 32"),
        (["--vocab-size", 64], "--vocab-size 64 is less than the 128"),
        (["--length", 64], "--length 64 exceeds --max-length 32"),
        (["--tokenizer-size", 512], "--tokenizer-size is for a tokenizer trained on the data"),
        (["--add-tokens", "[MASK]"], "--add-tokens: every word in it is a token already"),
        (["--add-tokens", tmp_path / "binary"], "is not UTF-8 text"),
        (["--add-tokens", "zebra", "--tokenizer", source / "tokenizer.json"], "--add-tokens adds to the tokenizer"),
        (["--embeddings", "counted"], "--embeddings counted is for new weights, and --init has its own"),
        (["--init", tmp_path], "is neither a run directory"),
        (["--init", tmp_path / "nowhere"], "is neither a run directory"),
    ]
    for options, named in cases:
        arguments = ["--init", source, "--data", text, *SMALL, "--steps", 1, "--out", tmp_path / "run", *options]
        if "--init" in options:
            arguments = arguments[2:]
        assert train_line(*arguments) == 2, options
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, options
        assert named in errors[0], errors
        assert not (tmp_path / "run").exists()
    assert train_line("--init", source) == 2
    assert "--init needs --data" in capsys.readouterr().err
