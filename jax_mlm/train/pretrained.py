"""What a fine-tuning begins with: a pretrained encoder, and the learning rate and the size of matrices that suit it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers import Tokenizer

from jax_mlm.config import ModelConfig, TaskConfig, TrainConfig
from jax_mlm.data.tokenizer import load_tokenizer
from jax_mlm.hf.directory import read_body_of
from jax_mlm.model.encoder import Params
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import TOKENIZER_FILE, read_run
from jax_mlm.train.start import is_run

LARGEST = 2.0
"""Size of a matrix from which a short pretraining's fine-tuning begins, at most: times that of a random one.

Published models are about as large: BERT's matrices have a root mean square of 0.04.
"""
TABLES = {"token_table", "position_table", "type_table"}
"""What is added to a token's embedding: these are scaled together."""


class Pretrained(NamedTuple):
    """An encoder to fine-tune."""

    model: ModelConfig
    tokenizer: Tokenizer
    params: Params
    """With what a head can keep; an earlier task's classifier is not kept."""
    pooling: Literal["cls", "mean"]
    """What stands for a text."""
    rate: float
    """Peak learning rate."""
    remarks: tuple[str, ...] = ()
    """What was done to it."""


def read_pretrained(source: Path, task: TaskConfig, freeze: int) -> Pretrained:
    """Read an encoder from a run or a Hugging Face directory.

    Of a run of ours the mean stands for a text where its family has the choice: no token was trained to. One that began
    at random has seen far less text than a published model: its rate is larger, and its matrices are shrunk, unless
    `freeze` layers are to stay as they are.

    Raises:
        UserError: `source` is neither, or is broken.
    """
    if not is_run(source):
        read = read_body_of(source, task)
        assert read.task is not None
        for remark in read.remarks:
            print(f"--init {source}: {remark}", file=sys.stderr)
        tokenizer = Tokenizer.from_str(read.tokenizer.to_str())
        return Pretrained(read.model, tokenizer, read.params, read.task.pooling, rate_for(read.model.width, False))
    before, (_, params) = read_run(source), load_params(source, "best")
    model, tokenizer = before.model, load_tokenizer(source / TOKENIZER_FILE)
    kept = {name: value for name, value in params.items() if name != "classifier"}
    short = seen_little(before)
    remarks = ()
    if short and not freeze:
        kept, factor = shrunk(kept, model.init_std)
        if factor < 1:
            remarks = (
                f"matrices larger than {LARGEST:g} random ones are shrunk to that size: to {factor:.2f} at least",
            )
    pooling: Literal["cls", "mean"] = "mean" if model.family == "modernbert" else "cls"
    return Pretrained(model, tokenizer, kept, pooling, rate_for(model.width, short), remarks)


def seen_little(run: TrainConfig) -> bool:
    """Return whether what a run trained began at random, with no other model to learn from."""
    return bool(run.steps or run.budget) and not run.init and not run.distil.distil


def rate_for(width: int, short: bool) -> float:
    """Return the peak learning rate for an encoder of this width: 2e-4 at 256, and 5e-4 after a short pretraining.

    After 30 minutes of a CPU that makes 2 points more on SST-2 (benchmarks/README.md).
    """
    return min(3e-4, 0.0512 / width) * (2.5 if short else 1)


def shrunk(params: Params, init_std: float) -> tuple[Params, float]:
    """Scale matrices that are larger than `LARGEST` random ones down to that size, as shrink and perturb does.

    Muon's updates do not become smaller as a loss does, so after thousands of steps without much decay the matrices are
    several times as large as random ones, and what is learned from there generalises worse at the same training loss
    (Ash and Adams, On Warm-Starting Neural Network Training, NeurIPS 2020; here: benchmarks/README.md). A bias is
    scaled as its kernel is, and all tables of the embedding by one factor, which is the tokens'.

    Args:
        params: nested dicts of numpy arrays.
        init_std: standard deviation of a random matrix.

    Returns:
        The parameters, and the smallest factor: 1 if nothing was scaled.
    """
    arrays: dict[tuple[str, ...], Any] = flatten_dict(dict(params))
    factors: dict[tuple[str, ...], float] = {}
    for *part, name in arrays:
        of = (*part, "token_table" if name in TABLES else "kernel")
        if of in arrays and name in {*TABLES, "kernel", "bias"}:
            size = float(np.sqrt(np.mean(np.square(np.asarray(arrays[of], np.float32)))))
            factors[*part, name] = min(1.0, LARGEST * init_std / max(size, 1e-30))
    changed = {path: np.asarray(arrays[path]) * np.float32(factor) for path, factor in factors.items() if factor < 1}
    return unflatten_dict({**arrays, **changed}), min(factors.values(), default=1.0)
