"""`from jax_mlm import TrainConfig, PRESETS, train, load`, as in a notebook."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from support.paths import ROOT
from support.runs import BRIEF

from jax_mlm import PRESETS, TrainConfig, load, train
from jax_mlm.errors import UserError
from jax_mlm.model.encoder import Inputs
from jax_mlm.run.log import read_metrics
from jax_mlm.train import program


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained in a thread that is not the main one."""
    sentence = PRESETS["sentence"]
    model = replace(sentence.model, **BRIEF)
    config = replace(sentence, model=model, steps=5, out=str(tmp_path_factory.mktemp("notebook") / "run"))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ended: list[Path] = []
    thread = threading.Thread(target=lambda: ended.append(train(config)))
    thread.start()
    thread.join(timeout=300)
    assert {number: signal.getsignal(number) for number in before} == before
    assert ended == [Path(config.out)]
    return ended[0]


def test_it_trains_in_any_thread_and_loads(run: Path) -> None:
    trained = load(run)
    assert isinstance(trained.config, TrainConfig)
    assert trained.step == 5
    tokens = np.arange(3, 13, dtype=np.int32)[None]
    inputs = Inputs(tokens, np.ones_like(tokens), np.arange(10, dtype=np.int32)[None])
    logits = jax.jit(trained.forward)(trained.params, inputs, np.array([[0, 9]], np.int32))
    assert logits.shape == (1, 2, trained.config.model.vocab_size)
    assert np.isfinite(logits).all()


def test_what_cannot_be_loaded_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run directory"):
        load(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of step 99"):
        load(run, 99)


def test_the_name_means_the_same_in_whatever_order_it_is_imported() -> None:
    script = "import jax_mlm.train.pace, jax_mlm.train.loop as loop\nfrom jax_mlm import train\n"
    script += "assert callable(train) and loop.fit\nfrom jax_mlm.train import options\nassert options.GROUPS"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_another_seed_compiles_nothing(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(run).config

    def enough(lowered: jax.stages.Lowered) -> None:
        raise InterruptedError

    with jax.log_compiles():
        with monkeypatch.context() as patch:
            patch.setattr(program, "compile_step", enough)
            with pytest.raises(InterruptedError):
                train(replace(first, out=str(tmp_path / "longer"), batch=2 * first.batch))
        assert "Compiling jit(train_step)" in caplog.text, "another batch does"
        jax.jit(lambda x: x + 1).lower(np.arange(7)).compile()
        assert "Finished XLA compilation" in caplog.text
        caplog.clear()
        train(replace(first, out=str(tmp_path / "other"), seed=first.seed + 1))
        assert "Finished XLA compilation" not in caplog.text
        assert "Compiling jit" not in caplog.text
    losses = [read_metrics(path)[-1]["loss"] for path in (run, tmp_path / "other")]
    assert losses[0] != losses[1]
