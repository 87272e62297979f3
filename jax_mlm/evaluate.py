"""Held-out loss, accuracy and pseudo-log-likelihood; `python -m jax_mlm.evaluate RUN --data FILE`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jax_mlm.cli.command import Command
from jax_mlm.config import MaskConfig, TrainConfig
from jax_mlm.data.batches import pack_rows
from jax_mlm.data.prepare import prepare
from jax_mlm.data.sources import documents, expand
from jax_mlm.data.tokenizer import load_tokenizer, vocabulary_of
from jax_mlm.errors import UserError
from jax_mlm.evals.heldout import EVAL_MASK, EVAL_SEED, evaluate_rows, make_eval_step
from jax_mlm.evals.scoring import make_masked_log_probs, pseudo_log_likelihood
from jax_mlm.files import cache_folder
from jax_mlm.model.encoder import Params, make_forward
from jax_mlm.run.checkpoint import best_step, load_params
from jax_mlm.run.directory import TOKENIZER_FILE, read_run


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluates a run on text it has not seen: loss, accuracy and perplexity at fixed masks."""

    run: Path = field(metadata={"positional": "RUN"})
    """The run directory."""
    data: tuple[str, ...] = field(default_factory=tuple)
    """Text to evaluate on: files, folders or globs."""
    json: bool = False
    """Print one JSON object."""
    pll: bool = False
    """Print the pseudo-log-likelihood of each document instead (each token hidden in turn)."""
    all_mask: bool = False
    """Show [MASK] at every target, instead of 80/10/10."""
    checkpoint: Literal["best", "latest"] = "best"
    """The checkpoint with the lowest validation loss, or the newest."""
    batch: int = 32
    """Rows computed at once; it changes no figure."""


def evaluate_text(config: EvaluateConfig, run: TrainConfig, params: Params) -> dict[str, Any]:
    """Loss, accuracy, perplexity and counts over the packed documents."""
    tokenizer_path = config.run / TOKENIZER_FILE
    vocabulary = vocabulary_of(load_tokenizer(tokenizer_path))
    files = prepare(expand(config.data, "--data"), tokenizer_path, run.corpus, cache_folder(run))
    rows = pack_rows(files, vocabulary, run.corpus.length, run.corpus.pack)
    mask = MaskConfig(mask_token=1.0, mask_random=0.0) if config.all_mask else EVAL_MASK
    forward = make_forward(run.model)
    eval_step = jax.jit(make_eval_step(forward, mask, vocabulary, run.corpus.length, jax.random.key(EVAL_SEED)))
    result = evaluate_rows(eval_step, params, rows, np.arange(len(rows)), config.batch)
    if not result.count:
        raise UserError(f"--data {' '.join(config.data)}: no token to predict (only special or unknown tokens)")
    return {
        "loss": result.loss,
        "accuracy": result.accuracy,
        "perplexity": math.exp(result.loss),
        "tokens": len(files.tokens),
        "targets": int(result.count),
        "rows": len(rows),
    }


def score_documents(config: EvaluateConfig, run: TrainConfig, params: Params) -> Iterable[dict[str, Any]]:
    """Pseudo-log-likelihood of each document of the text."""
    tokenizer = load_tokenizer(config.run / TOKENIZER_FILE)
    vocabulary = vocabulary_of(tokenizer)
    log_probs = make_masked_log_probs(make_forward(run.model))
    paths = expand(config.data, "--data")
    for number, text in enumerate(documents(paths, run.corpus.document, run.corpus.text_field), 1):
        ids = tokenizer.encode(text).ids
        if len(ids) > run.model.max_length:
            raise UserError(
                f"document {number} of --data has {len(ids)} tokens, and the model reads {run.model.max_length}: "
                "split it into sentences"
            )
        total, count = pseudo_log_likelihood(log_probs, params, ids, vocabulary, config.batch)
        yield {"text": text, "pll": total, "tokens": count}


def run(config: EvaluateConfig) -> None:
    """Print the figures of one run on one text."""
    if not config.data:
        raise UserError("the run or --data is missing: python -m jax_mlm.evaluate RUN --data FILE")
    run = read_run(config.run)
    step = best_step(config.run) if config.checkpoint == "best" else None
    step, params = load_params(config.run, step)
    params = jax.tree.map(jnp.asarray, params)
    if config.pll:
        for scored in score_documents(config, run, params):
            if config.json:
                print(json.dumps(scored, ensure_ascii=False), flush=True)
            else:
                print(f"{scored['pll']:10.3f}  {scored['tokens']:5d} tokens  {scored['text']}", flush=True)
        return
    result = {**evaluate_text(config, run, params), "step": step}
    if config.json:
        print(json.dumps(result))
        return
    masks = "all [MASK]" if config.all_mask else "80/10/10"
    print(f"{config.run}, step {step}: {result['targets']} targets (15 % masks, {masks}) of {result['tokens']} tokens")
    print(f"loss {result['loss']:.4f}   accuracy {result['accuracy']:.4f}   perplexity {result['perplexity']:.2f}")


EXAMPLES = """examples:
  python -m jax_mlm.evaluate runs/tiny --data held-out.txt --json
  python -m jax_mlm.evaluate runs/tiny --data sentences.txt --pll"""

COMMAND = Command("python -m jax_mlm.evaluate", EvaluateConfig, run, EXAMPLES)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
