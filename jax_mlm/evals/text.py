"""A run on a text: held-out loss and accuracy, or the pseudo-log-likelihood of each document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jax_mlm.config import Json, MaskConfig, TrainConfig
from jax_mlm.data.batches import pack_rows
from jax_mlm.data.prepare import prepare
from jax_mlm.data.sources import documents, expand, spooled
from jax_mlm.data.tokenizer import as_text, load_tokenizer, vocabulary_of
from jax_mlm.errors import UserError
from jax_mlm.evals.heldout import evaluate_rows
from jax_mlm.evals.scoring import make_masked_log_probs, pseudo_log_likelihood
from jax_mlm.files import cache_folder
from jax_mlm.model.encoder import Params
from jax_mlm.model.heads import make_forward
from jax_mlm.run.directory import TOKENIZER_FILE
from jax_mlm.tasks.mlm import EVAL_MASK, make_examine


def evaluate_text(
    run: Path, config: TrainConfig, params: Params, data: Sequence[str], batch: int, all_mask: bool = False
) -> Json:
    """Return loss, accuracy, perplexity and counts over the packed documents."""
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    vocabulary = vocabulary_of(tokenizer)
    cache = cache_folder(config)
    paths = expand(spooled(data, "--data", cache, config.corpus.text_field), "--data")
    files = prepare(paths, tokenizer, vocabulary, config.corpus, cache)
    rows = pack_rows(files, vocabulary, config.corpus.length, config.corpus.pack)
    mask = MaskConfig(mask_token=1.0, mask_random=0.0) if all_mask else EVAL_MASK
    examine = jax.jit(make_examine(make_forward(config.model), vocabulary, config.corpus.length, mask))
    params = jax.tree.map(jnp.asarray, params)
    result = evaluate_rows(examine, params, rows, np.arange(len(rows)), batch)
    if not result.count:
        raise UserError(f"--data {' '.join(data)}: no token to predict (only special or unknown tokens)")
    return {
        "loss": result.loss,
        "accuracy": result.accuracy,
        "perplexity": math.exp(result.loss),
        "tokens": len(files.tokens),
        "targets": int(result.count),
        "rows": len(rows),
    }


def score_documents(run: Path, config: TrainConfig, params: Params, data: Sequence[str], batch: int) -> Iterator[Json]:
    """Yield the pseudo-log-likelihood of each document of the text."""
    tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    vocabulary = vocabulary_of(tokenizer)
    log_probs = make_masked_log_probs(make_forward(config.model))
    params = jax.tree.map(jnp.asarray, params)
    paths = expand(spooled(data, "--data", cache_folder(config), config.corpus.text_field), "--data")
    reader = as_text(tokenizer)
    for number, text in enumerate(documents(paths, config.corpus.document, config.corpus.text_field), 1):
        ids = reader.encode(text).ids
        if len(ids) > config.model.max_length:
            raise UserError(
                f"document {number} of --data has {len(ids)} tokens, and the model reads {config.model.max_length}: "
                "split it into sentences"
            )
        total, count = pseudo_log_likelihood(log_probs, params, ids, vocabulary, batch)
        yield {"text": text, "pll": total, "tokens": count}
