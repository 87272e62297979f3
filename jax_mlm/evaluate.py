"""Held-out loss, accuracy and pseudo-log-likelihood; `python -m jax_mlm.evaluate RUN --data FILE`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from jax_mlm.checkpoint import best_step, load_params
from jax_mlm.config import MaskConfig, TrainConfig
from jax_mlm.console import run_command
from jax_mlm.corpus import prepare
from jax_mlm.data import Batch, Rows, batch_of, pack_rows
from jax_mlm.dataset import cache_folder
from jax_mlm.errors import UserError
from jax_mlm.loss import Metrics
from jax_mlm.model import Inputs, Params, make_forward
from jax_mlm.run import TOKENIZER_FILE, read_run
from jax_mlm.sources import documents, expand
from jax_mlm.step import Forward, make_eval_step
from jax_mlm.tokenizer import Vocabulary, load_tokenizer, vocabulary_of

EVAL_MASK = MaskConfig()
"""15 % of the tokens, 80/10/10, one by one: what the field reports, whatever the training masks were."""
EVAL_SEED = 0


class Result(NamedTuple):
    """Sums over targets, in float64 on the host."""

    loss_sum: float
    correct: float
    count: float

    def __add__(self, other: Result) -> Result:  # type: ignore[override]
        return Result(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def loss(self) -> float:
        return self.loss_sum / max(self.count, 1.0)

    @property
    def accuracy(self) -> float:
        return self.correct / max(self.count, 1.0)


def result_of(metrics: Metrics) -> Result:
    """On the host, once the device has computed them."""
    return Result(*map(float, jax.device_get((metrics.loss_sum, metrics.correct, metrics.count))))


def evaluate_rows(
    eval_step: Callable[[Params, Batch], Metrics],
    params: Params,
    rows: Rows,
    indices: np.ndarray,
    batch: int,
    place: Callable[[Batch], Batch] = lambda b: b,
    shard: tuple[int, int] = (0, 1),
) -> Result:
    """Metrics over the given rows; a batch past their end is filled with padding, which weighs nothing.

    One batch is computed while the one before is added up; `shard` is this host's (index, count).
    """
    total, pending = Result(0.0, 0.0, 0.0), None
    part = batch // shard[1]
    for start in range(0, len(indices), batch):
        mine = indices[start : start + batch][shard[0] * part : (shard[0] + 1) * part]
        padded = np.full(part, len(rows), np.int64)
        padded[: len(mine)] = mine
        metrics = eval_step(params, place(batch_of(rows, padded)))
        if pending is not None:
            total += result_of(pending)
        pending = metrics
    return total if pending is None else total + result_of(pending)


def spread(total: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """`wanted` of `total` row numbers at even distances (all when 0), and the others."""
    count = total if wanted <= 0 else min(wanted, total)
    chosen = np.arange(count) * total // count
    return chosen, np.setdiff1d(np.arange(total), chosen)


def make_masked_log_probs(forward: Forward) -> Callable[[Params, Inputs, Array], Float[Array, "B V"]]:
    """`log_probs(params, inputs, at)`: log-probabilities [B, V] at one position `at` [B] of each row."""

    @jax.jit
    def log_probs(params: Params, inputs: Inputs, at: Array) -> Array:
        return jax.nn.log_softmax(forward(params, inputs, at[:, None])[:, 0], axis=-1)

    return log_probs


def mask_each(
    log_probs: Callable[..., Array], params: Params, ids: Sequence[int], vocabulary: Vocabulary, batch: int = 32
) -> tuple[np.ndarray, Float[np.ndarray, "N V"]]:
    """Hides each ordinary token in turn: the N positions, and the log-probabilities at each.

    Lengths are padded to a multiple of 16, in their own segment, so that few shapes are compiled.
    """
    tokens = np.asarray(ids, np.int32)
    at = np.flatnonzero(~np.isin(tokens, vocabulary.special)).astype(np.int32)
    width = -(-len(tokens) // 16) * 16
    row = np.full(width, vocabulary.pad, np.int32)
    row[: len(tokens)] = tokens
    segment = (np.arange(width) < len(tokens)).astype(np.int32)
    out = []
    for start in range(0, len(at), batch):
        mine = at[start : start + batch]
        hidden = np.tile(row, (batch, 1))
        hidden[np.arange(len(mine)), mine] = vocabulary.mask
        where = np.zeros(batch, np.int32)
        where[: len(mine)] = mine
        inputs = Inputs(hidden, np.tile(segment, (batch, 1)), np.tile(np.arange(width, dtype=np.int32), (batch, 1)))
        out.append(np.asarray(log_probs(params, inputs, where))[: len(mine)])
    if not out:
        return at, np.zeros((0, 0), np.float32)
    return at, np.concatenate(out)


def pseudo_log_likelihood(
    log_probs: Callable[..., Array], params: Params, ids: Sequence[int], vocabulary: Vocabulary, batch: int = 32
) -> tuple[float, int]:
    """Σ ln p(token | all others), each hidden alone (Salazar et al. 2020), and the number of tokens in the sum."""
    at, scores = mask_each(log_probs, params, ids, vocabulary, batch)
    if not len(at):
        return 0.0, 0
    return float(scores[np.arange(len(at)), np.asarray(ids)[at]].astype(np.float64).sum()), len(at)


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluates a run on text it has not seen: loss, accuracy and perplexity at fixed masks."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
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


def main(config: EvaluateConfig) -> None:
    """Prints the figures of one run on one text."""
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

if __name__ == "__main__":
    sys.exit(run_command("python -m jax_mlm.evaluate", EvaluateConfig, main, EXAMPLES))
