"""Fine-tuned models with random weights, and their bundles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from mlm_onnx.convert.asked import Tuned
from mlm_onnx.convert.pipeline import write_bundle
from mlm_onnx.convert.request import Request

from jax_mlm.config import ModelConfig, TaskConfig
from support.bundles import ONE_SHAPE, ORIGIN, piecewise
from support.models import MODELS, shapes_of

TASKS = {
    "classify": TaskConfig("classify", ("no", "perhaps", "yes"), overlap=4),
    "several": TaskConfig("classify", ("a", "b"), "multi", overlap=4),
    "number": TaskConfig("classify", (), "regression", overlap=4),
    "mean": TaskConfig("classify", ("a", "b"), pooling="mean", overlap=4),
    "pair": TaskConfig("classify", ("no", "yes"), pair=True, overlap=4),
    "tag": TaskConfig("tag", ("O", "B-x", "I-x", "B-y", "I-y"), overlap=4),
    "answer": TaskConfig("answer", pair=True, overlap=4, max_answer=6),
    "perhaps": TaskConfig("answer", pair=True, overlap=4, max_answer=6, no_answer=True),
}
LENGTH = 24
"""Tokens of a window."""


def drawn(model: ModelConfig, task: TaskConfig) -> Any:
    """Return random parameters of the body and the head."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.1, 0.4, leaf.shape).astype(np.float32), shapes_of(model, task))


def sized(family: str, kind: str) -> ModelConfig:
    """Return a small model of a family for the tokenizer of that kind."""
    return replace(MODELS[family], vocab_size=piecewise(kind).get_vocab_size())


def task_bundle(
    folder: Path, task: TaskConfig, kind: str = "wordpiece", family: str = "modernbert", **given: Any
) -> Path:
    """Write the bundle of a model with random weights, in float32 unless the request says otherwise."""
    model = sized(family, kind)
    request = Request(**{"dtype": "fp32", **given})
    tuned = Tuned(task, LENGTH)
    write_bundle(folder, model, drawn(model, task), piecewise(kind), request, ORIGIN, ONE_SHAPE, tuned)
    return folder
