"""Weights to continue from: a run or a Hugging Face directory, with tokens added or a longer context."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.checkpoint import best_step, load_params
from jax_mlm.config import ModelConfig
from jax_mlm.errors import UserError
from jax_mlm.hf import read_hf
from jax_mlm.run import RUN_FILE, TOKENIZER_FILE, read_run
from jax_mlm.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Initial:
    """A model to continue: its shape, its parameters (float32, numpy) and its tokenizer."""

    model: ModelConfig
    params: dict[str, Any]
    tokenizer: Tokenizer


def read_initial(source: Path) -> Initial:
    """The best checkpoint of a run, or the model in a Hugging Face directory.

    Raises:
        UserError: `source` is neither, or is broken.
    """
    if (source / RUN_FILE).is_file():
        _, params = load_params(source, best_step(source))
        return Initial(read_run(source).model, params, load_tokenizer(source / TOKENIZER_FILE))
    if not (source / "config.json").is_file():
        raise UserError(f"{source} is neither a run directory ({RUN_FILE}) nor a Hugging Face model (config.json)")
    imported = read_hf(source)
    return Initial(imported.model, dict(imported.params), imported.tokenizer)


def grow(start: Initial, vocab_size: int, max_length: int, seed: int = 0) -> Initial:
    """The same model with at least `vocab_size` embeddings and `max_length` positions; what was there is unchanged.

    New tokens start at the mean of the old ones plus noise of the initial deviation (Hewitt 2021), so that they are
    likely at first as an average token is. New learned positions repeat the old ones (Beltagy et al. 2020); rotary
    ones need nothing.
    """
    model, params = start.model, dict(start.params)
    rng = np.random.default_rng(seed)
    added = max(0, vocab_size - model.vocab_size)
    if added:
        for name in ("token_table", "decoder"):
            if name in params:
                mean = params[name].mean(0)
                fresh = mean + rng.normal(0, model.init_std, (added, len(mean)))
                params[name] = np.concatenate([params[name], fresh.astype(np.float32)])
        if "decoder_bias" in params:
            bias = params["decoder_bias"]
            params["decoder_bias"] = np.concatenate([bias, np.full(added, bias.mean(), np.float32)])
    length = max(max_length, model.max_length)
    if model.positions == "learned" and length > model.max_length:
        unused, used = np.split(params["position_table"], [model.position_offset])
        repeated = np.resize(used, (length, used.shape[1]))
        params["position_table"] = np.concatenate([unused, repeated])
    grown = replace(model, vocab_size=model.vocab_size + added, max_length=length)
    return replace(start, model=grown, params=params)
