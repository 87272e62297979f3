"""A run on a text: held-out loss and accuracy, or the pseudo-log-likelihood of each document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_mlm.config import Json, MaskConfig, ModelConfig, TrainConfig
from jax_mlm.data.batches import Batch, pack_rows
from jax_mlm.data.prepare import prepare
from jax_mlm.data.sources import documents, expand, spooled
from jax_mlm.data.tokenizer import Vocabulary, load_tokenizer, vocabulary_of
from jax_mlm.errors import UserError
from jax_mlm.evals.heldout import evaluate_rows
from jax_mlm.evals.likelihood import CHARACTERS_A_TOKEN, Method, Score, in_parts, make_scorer, tokens_at_once
from jax_mlm.files import cache_folder
from jax_mlm.model.encoder import Params
from jax_mlm.model.heads import make_forward
from jax_mlm.run.directory import TOKENIZER_FILE
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.tasks.mlm import EVAL_MASK, make_examine

LARGEST = 700
"""e to this power is near the largest number."""


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
    examine = partial(_examine, config.model, vocabulary, config.corpus.length, mask)
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


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _examine(
    model: ModelConfig, vocabulary: Vocabulary, length: int, mask: MaskConfig, params: Params, batch: Batch
) -> Metrics:
    return make_examine(make_forward(model), vocabulary, length, mask)(params, batch)


class Scored(NamedTuple):
    """A document, and its score."""

    text: str
    score: Score

    @property
    def words(self) -> int:
        """Number of words between white space."""
        return len(self.text.split())

    @property
    def bytes(self) -> int:
        """Number of bytes in UTF-8."""
        return len(self.text.encode("utf-8"))

    def to_json(self) -> Json:
        """Return the line of a document: `pll` is the original score, as it was before there was another."""
        pll = {"pll" if method == "original" else "pll_word_l2r": value for method, value in self.score.pll.items()}
        counts = {"tokens": self.score.tokens, "unknown": self.score.unknown, "words": self.words, "bytes": self.bytes}
        return {"text": self.text, **pll, **counts}


def score_documents(
    run: Path, config: TrainConfig, params: Params, data: Sequence[str], batch: int, methods: Sequence[Method]
) -> Iterator[Scored]:
    """Yield the documents of the text with their pseudo-log-likelihoods."""
    paths = expand(spooled(data, "--data", cache_folder(config), config.corpus.text_field), "--data")
    at_once = tokens_at_once(batch)
    score = make_scorer(load_tokenizer(run / TOKENIZER_FILE), config.model, params, methods, at_once)
    texts = documents(paths, config.corpus.document, config.corpus.text_field)
    for part in in_parts(texts, len, at_once * CHARACTERS_A_TOKEN):
        yield from map(Scored, part, score(part))


@dataclass(frozen=True)
class Corpus:
    """Sums over documents, for figures that do not depend on how a tokenizer cuts the text."""

    documents: int = 0
    tokens: int = 0
    unknown: int = 0
    words: int = 0
    bytes: int = 0
    pll: Mapping[Method, float] = field(default_factory=dict)

    def plus(self, scored: Scored) -> Corpus:
        """Return the sums with one more document."""
        return Corpus(
            self.documents + 1,
            self.tokens + scored.score.tokens,
            self.unknown + scored.score.unknown,
            self.words + scored.words,
            self.bytes + scored.bytes,
            {method: self.pll.get(method, 0.0) + value for method, value in scored.score.pll.items()},
        )

    def figures(self) -> Json:
        """Return the counts, and the pseudo-perplexity per word and bits per byte by each method.

        The pseudo-perplexity is exp(−PLL / N) (Salazar et al. 2020), N the words between white space instead of the
        tokens; bits per byte are −PLL / (ln 2 · bytes), as for The Pile (Gao et al. 2020), bytes those of the documents
        in UTF-8. Both sum over the corpus before they divide.
        """
        counts = {name: getattr(self, name) for name in ("documents", "tokens", "unknown", "words", "bytes")}
        methods = {
            method: {
                "pll": pll,
                "perplexity_per_word": math.exp(min(-pll / self.words, LARGEST)),
                "bits_per_byte": -pll / (math.log(2) * self.bytes),
            }
            for method, pll in self.pll.items()
        }
        return {**counts, "methods": methods}
