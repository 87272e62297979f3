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
from jax_mlm.run.directory import RUN_FILE, TOKENIZER_FILE, read_run
from jax_mlm.train.start import check_finite, is_run

LARGEST = 0.04
"""Largest root mean square of a matrix that a run from scratch is fine-tuned from: twice a random one's, and BERT's."""
TOGETHER = {"kernel": ("kernel", "bias"), "token_table": ("token_table", "position_table", "type_table")}
"""Arrays that are scaled by the factor of the first: a product and its bias, and what is added up to an embedding."""


class Pretrained(NamedTuple):
    """An encoder to fine-tune."""

    model: ModelConfig
    tokenizer: Tokenizer
    params: Params
    """The encoder's, and what a head can reuse; an earlier task's classifier is dropped."""
    pooling: Literal["cls", "mean"]
    """What stands for a text."""
    from_scratch: bool
    """Whether all it has learned it learned from random weights, in runs of ours."""

    @property
    def rate(self) -> float:
        """The peak learning rate: by the width, 2e-4 at 256; 2.5 times as much from scratch (benchmarks/README.md)."""
        return min(3e-4, 0.0512 / self.model.width) * (2.5 if self.from_scratch else 1)


def read_pretrained(source: Path, task: TaskConfig) -> Pretrained:
    """Read an encoder from a run or a Hugging Face directory.

    The mean stands for a text of a run of ours, where its family has the choice: no token was trained to stand for it.

    Raises:
        UserError: `source` is neither, or is broken, or holds weights that are not finite.
    """
    if is_run(source):
        run, (_, params) = read_run(source), load_params(source, "best")
        check_finite(params, source)
        kept = {name: value for name, value in params.items() if name != "classifier"}
        pooling: Literal["cls", "mean"] = "mean" if run.model.family == "modernbert" else "cls"
        return Pretrained(run.model, load_tokenizer(source / TOKENIZER_FILE), kept, pooling, from_scratch(run))
    read = read_body_of(source, task)
    assert read.task is not None
    check_finite(read.params, source)
    for remark in read.remarks:
        print(f"--init {source}: {remark}", file=sys.stderr)
    return Pretrained(read.model, Tokenizer.from_str(read.tokenizer.to_str()), read.params, read.task.pooling, False)


def from_scratch(run: TrainConfig) -> bool:
    """Return whether a run began with random weights and had no teacher, or only such runs before it.

    A run that it continues and that is no longer there counts as published.
    """
    if not (run.steps or run.budget):  # imported from Hugging Face
        return False
    before = [Path(source) for source in (run.init, run.distil.distil) if source]
    return all((source / RUN_FILE).is_file() and from_scratch(read_run(source)) for source in before)


def shrunk(params: Params) -> tuple[Params, float]:
    """Scale kernels and embeddings whose root mean square is above `LARGEST` down to that.

    It is the shrinking of "shrink and perturb" (Ash and Adams, On Warm-Starting Neural Network Training, NeurIPS 2020),
    without its noise. Muon's updates have one size however small the gradient is, so its matrices end six to eight
    times as large as random ones; from there a task is learned to the same training loss, and generalises worse
    (benchmarks/README.md). A bias is scaled as its kernel is, and every table of the embedding as the tokens' is.

    Args:
        params: nested dicts of numpy arrays.

    Returns:
        The parameters, and the smallest factor: 1 if nothing was scaled.
    """
    arrays: dict[tuple[str, ...], Any] = flatten_dict(dict(params))
    smallest, found = 1.0, dict(arrays)
    for *room, name in arrays:
        if name not in TOGETHER:
            continue
        size = float(np.sqrt(np.mean(np.square(arrays[*room, name]))))
        if size > LARGEST:
            smallest = min(smallest, LARGEST / size)
            for path in ((*room, other) for other in TOGETHER[name] if (*room, other) in arrays):
                found[path] = np.asarray(arrays[path]) * np.float32(LARGEST / size)
    return unflatten_dict(found), smallest
