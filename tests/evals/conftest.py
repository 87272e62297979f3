"""A run that the tests of evaluation measure."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_mlm.config import DataConfig, ModelConfig
from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.model.heads import init_params
from jax_mlm.presets import PRESETS
from jax_mlm.run.checkpoint import open_checkpoints, save
from jax_mlm.run.directory import write_run
from jax_mlm.train.step import TrainState

LINES = [f"line {i} says that {i * 7 % 13} birds and {i * 5 % 11} fish met near the old bridge" for i in range(60)]


@pytest.fixture(scope="package")
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
