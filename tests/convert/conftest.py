"""What several tests of conversions need."""

from __future__ import annotations

import os
import subprocess
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


@pytest.fixture(scope="session")
def optimum() -> str:
    """Return a Python that has optimum, or skip: before any bundle is made for it."""
    python = os.environ.get("JAX_MLM_PEERS_PYTHON")
    if not python or subprocess.run([python, "-c", "import optimum.onnxruntime"], capture_output=True).returncode:
        pytest.skip("set JAX_MLM_PEERS_PYTHON to a Python that has jax-mlm's extra `peers` (optimum-onnx)")
    return python


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """Return the folder with @huggingface/transformers that $JAX_MLM_NODE_MODULES names, or skip."""
    modules = os.environ.get("JAX_MLM_NODE_MODULES")
    if not modules or not (Path(modules) / "@huggingface" / "transformers").is_dir():
        pytest.skip("needs JAX_MLM_NODE_MODULES: a node_modules folder with @huggingface/transformers")
    return Path(modules).resolve()
