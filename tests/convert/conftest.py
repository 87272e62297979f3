"""What several tests of conversions need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import pytest
from support.bundles import SENTENCE_MODEL
from support.models import randomised

from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.presets import PRESETS, SENTENCE
from jax_mlm.run.checkpoint import open_checkpoints, save
from jax_mlm.run.directory import write_run


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with two checkpoints, of which the earlier one is the best."""
    path = tmp_path_factory.mktemp("run") / "sentence"
    path.mkdir()
    config = replace(PRESETS["sentence"], model=SENTENCE_MODEL)
    train_tokenizer([SENTENCE], "word", 16).save(str(path / "tokenizer.json"))
    write_run(path, config, {}, {})
    manager = open_checkpoints(path)
    for step, loss in ((3, 0.5), (5, 0.9)):
        save(manager, {"params": randomised(config.model, step), "step": jnp.int32(step)}, {"step": step}, loss)
    manager.wait_until_finished()
    manager.close()
    return path
