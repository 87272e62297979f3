"""A run and bundles that earlier code made are read, go on and answer as they did; `make.py` says what lies here.

These files are never made anew to mend a test: what people have trained and converted cannot be either.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.make import (
    DTYPES,
    EXPECTED,
    GOLDEN,
    LOGITS,
    MORE,
    RUNS,
    STEPS,
    TEXT,
    TRAIN,
    answers,
    graph_bits,
    leaves,
    logits,
    losses,
    maker,
    trained_bits,
)
from mlm_onnx.bundle.read import open_bundle, read_manifest
from mlm_onnx.convert import Request, convert
from support.runs import train_line

from jax_mlm.config import to_json
from jax_mlm.evals.text import evaluate_text
from jax_mlm.evaluate import EvaluateConfig
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run, read_run_file
from jax_mlm.run.log import read_metrics, read_samples

CLOSE = 1e-5
"""Relative: what float32 may differ by between the oldest and the newest JAX, and from one processor to the next."""
ALIKE = 40
"""Steps of a training whose losses are compared. Rounding grows with every step: computed with AVX2 instead of AVX-512,
the losses differ by 1e-7 at most up to here, by 2e-6 at step 80, and by more than 1e-4 at step 96."""
EXPECTED_NOW = json.loads(EXPECTED.read_text(encoding="utf-8"))
BITS = pytest.mark.skipif(
    os.environ.get("JAX_MLM_GOLDEN_BITS") != "1",
    reason="bits hold on the processor and with the versions that made them: JAX_MLM_GOLDEN_BITS=1 compares them",
)


def train(folder: Path, *arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train_line(*arguments) == 0


@pytest.fixture(scope="module")
def repeated(tmp_path_factory) -> Path:
    """The run, trained once more by the command that made it, in the type that it then took."""
    folder = tmp_path_factory.mktemp("repeated")
    shutil.copy(TEXT, folder)
    train(folder, *TRAIN, "--dtype", "float32", "--out", "run")
    return folder / "run"


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, Path]:
    """The run, converted once more."""
    folder = tmp_path_factory.mktemp("converted")
    for dtype in DTYPES:
        convert(GOLDEN / "run", folder / dtype, Request(dtype, with_attention=True))
    return {dtype: folder / dtype for dtype in DTYPES}


# ---- the runs ------------------------------------------------------------------------------------


def assert_kept(stored: Any, now: Any, name: str = "config") -> None:
    """All that is stored is there now; fields may have been added."""
    if isinstance(stored, dict):
        for key, value in stored.items():
            assert key in now, f"{name}.{key}"
            assert_kept(value, now[key], f"{name}.{key}")
    else:
        assert stored == now, name


def without_prose(value: Any) -> Any:
    """What a program reads of a manifest: the meaning of a port is a sentence, which may be worded better."""
    if isinstance(value, dict):
        return {key: without_prose(inside) for key, inside in value.items() if key != "meaning"}
    return [without_prose(inside) for inside in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", RUNS)
def test_every_field_of_its_configuration_is_read_and_written_again(name):
    config = read_run(GOLDEN / name)
    assert_kept(read_run_file(GOLDEN / name)["config"], to_json(config))


@pytest.mark.parametrize("name", RUNS)
def test_its_metrics_samples_and_parameters_are_read(name):
    run = GOLDEN / name
    metrics = read_metrics(run)
    last = metrics[-1]
    assert last["kind"] == "final"
    assert {"kind", "step", "loss", "accuracy", "tokens", "lr", "mask_rate", "seconds"} <= set(metrics[0])
    assert [line["step"] for line in read_samples(run)] == [int(step) for step in losses(run, "valid")]
    step, params = load_params(run, "best")
    assert step == EXPECTED_NOW["runs"][name]["evaluate"]["step"]
    assert {leaf.dtype for _, leaf in leaves(params)} == {np.dtype("float32")}


@pytest.mark.parametrize("name", RUNS)
def test_its_logits_are_what_they_were(name):
    with np.load(LOGITS) as stored:
        before = stored[name]
    np.testing.assert_allclose(logits(GOLDEN / name), before, rtol=0, atol=CLOSE * np.abs(before).max())


@pytest.mark.parametrize("name", RUNS)
def test_its_evaluation_is_what_it_was(name, tmp_path):
    run, before = GOLDEN / name, EXPECTED_NOW["runs"][name]["evaluate"]
    config, (step, params) = read_run(run), load_params(run, "best")
    config = replace(config, corpus=replace(config.corpus, workers=1, cache=str(tmp_path)))
    now = {**evaluate_text(run, config, params, (str(TEXT),), EvaluateConfig.batch), "step": step}
    floats = {"loss", "accuracy", "perplexity"}
    assert {key: now[key] for key in before if key not in floats} == {
        key: value for key, value in before.items() if key not in floats
    }
    assert [now[key] for key in sorted(floats)] == pytest.approx([before[key] for key in sorted(floats)], rel=CLOSE)


@pytest.mark.slow
def test_it_resumes_and_its_next_losses_are_what_they_were(tmp_path):
    shutil.copytree(GOLDEN / "run", tmp_path / "run")
    shutil.copy(TEXT, tmp_path)
    train(tmp_path, "--resume", "--out", "run", "--steps", str(STEPS + MORE))
    metrics = read_metrics(tmp_path / "run")
    assert (metrics[-1]["kind"], metrics[-1]["step"]) == ("final", STEPS + MORE)
    now, before = losses(tmp_path / "run", "train"), losses(GOLDEN / "run", "train")
    assert {step: loss for step, loss in now.items() if int(step) <= STEPS} == before
    assert {step: now[step] for step in EXPECTED_NOW["resumed"]} == pytest.approx(EXPECTED_NOW["resumed"], rel=CLOSE)
    assert load_params(tmp_path / "run")[0] == STEPS + MORE


def test_the_same_command_trains_the_same_run(repeated):
    first, again = (json.loads((run / "tokenizer.json").read_bytes()) for run in (GOLDEN / "run", repeated))
    assert again["model"] == first["model"], "the normaliser around it has become gentler, and these words are the same"
    assert again["added_tokens"] == first["added_tokens"]
    assert read_run_file(repeated)["data"]["files"] == read_run_file(GOLDEN / "run")["data"]["files"]
    stored = {**read_run_file(GOLDEN / "run")["config"], "dtype": "float32"}  # it was left to the machine then
    assert_kept(stored, read_run_file(repeated)["config"])
    for kind in ("train", "valid"):
        before, now = EXPECTED_NOW["trained"][kind], losses(repeated, kind)
        assert list(now) == list(before)
        for step in before:
            assert math.isfinite(now[step])
            if int(step) <= ALIKE:
                assert now[step] == pytest.approx(before[step], rel=CLOSE), (kind, step)


# ---- the bundles ---------------------------------------------------------------------------------


def assert_alike(now: dict[str, Any], dtype: str) -> None:
    """Answers within 1e-5 in float32; in int8 the same first ones, within 0.02."""
    before = EXPECTED_NOW["bundles"][dtype]
    apart = CLOSE if dtype == "fp32" else 0.02
    for was, found in zip(before["fill"], now["fill"], strict=True):
        assert found[0][0] == was[0][0]
        if dtype == "fp32":
            assert [token for token, _ in found] == [token for token, _ in was]
        probabilities = dict(found)
        for token, probability in was:
            if token in probabilities:
                assert probabilities[token] == pytest.approx(probability, abs=apart)
    assert now["score"] == pytest.approx(before["score"], rel=apart)
    vectors = np.array(before["embed"])
    np.testing.assert_allclose(np.array(now["embed"]), vectors, rtol=0, atol=apart * np.abs(vectors).max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bundle_opens_and_answers_as_it_did(dtype):
    folder = GOLDEN / f"bundle-{dtype}"
    assert open_bundle(folder, full=True).manifest["dtype"] == dtype
    assert_alike(answers(folder), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_new_conversion_of_the_run_answers_as_the_old(converted, dtype):
    assert_alike(answers(converted[dtype]), dtype)
    before, now = (read_manifest(folder) for folder in (GOLDEN / f"bundle-{dtype}", converted[dtype]))
    assert set(before) <= set(now)
    for field in ("format", "task", "dtype", "vocab_size", "tokens", "limits", "graphs"):
        assert_kept(without_prose(before[field]), without_prose(now[field]), field)
    assert set(now["files"]) >= set(before["files"])


# ---- every bit -----------------------------------------------------------------------------------


@BITS
def test_training_and_conversion_are_what_they_were_bit_for_bit(repeated, converted, environment):
    assert maker() == EXPECTED_NOW["made"], "these bits were made elsewhere: nothing to compare"
    now = {kind: losses(repeated, kind) for kind in EXPECTED_NOW["trained"]}
    assert now == EXPECTED_NOW["trained"]
    bits = trained_bits(repeated, Path(environment["JAX_MLM_CACHE"]))
    assert {**bits, **{dtype: graph_bits(converted[dtype]) for dtype in DTYPES}} == EXPECTED_NOW["bits"]
