"""Named sets of defaults: shapes and recipes of our own, and those that the papers of the six families give.

Where a paper's batch is larger than a processor's memory holds, it is computed in microbatches there; give --batch and
--accumulate for a different one. Vocabularies are rounded up to a multiple of 64.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jax_mlm.config import DataConfig, MaskConfig, ModelConfig, OptimConfig, TrainConfig

# ---- shapes --------------------------------------------------------------------------------------


def _bert(width: int, layers: int, heads: int) -> ModelConfig:
    """BERT (Devlin et al. 2018): post-norm, learned positions, biases everywhere."""
    return ModelConfig(
        family="bert",
        width=width,
        layers=layers,
        heads=heads,
        ff_width=4 * width,
        max_length=512,
        norm_first=False,
        norm_bias=True,
        norm_eps=1e-12,
        positions="learned",
        token_types=2,
        gated=False,
        attention_bias=True,
        mlp_bias=True,
        head_bias=True,
        dropout=0.1,
        attention_dropout=0.1,
    )


def _roberta(width: int, layers: int, heads: int) -> ModelConfig:
    """RoBERTa (Liu et al. 2019): positions count from the row after the padding's id, which is 1."""
    shape = _bert(width, layers, heads)
    return replace(shape, family="roberta", token_types=1, norm_eps=1e-5, position_offset=2)


def _albert(width: int, layers: int, heads: int) -> ModelConfig:
    """ALBERT (Lan et al. 2019), version 2: a narrow table, one set of parameters for all layers, no dropout."""
    shape = _bert(width, layers, heads)
    return replace(
        shape,
        family="albert",
        embedding_width=128,
        layer_groups=1,
        activation="gelu_tanh",
        dropout=0.0,
        attention_dropout=0.0,
    )


def _modernbert(width: int, layers: int, heads: int, ff_width: int) -> ModelConfig:
    """ModernBERT (Warner et al. 2024): every third layer attends globally, the others to 128 tokens; tied, biasless."""
    return ModelConfig(
        width=width,
        layers=layers,
        heads=heads,
        ff_width=ff_width,
        max_length=8192,
        global_every=3,
        local_window=128,
        rope_theta=160_000.0,
    )


def _esm2(width: int, layers: int, heads: int) -> ModelConfig:
    """ESM-2 (Lin et al. 2023): pre-norm with biases, rotary positions, masked embeddings zeroed; no dropout."""
    shape = _bert(width, layers, heads)
    return replace(
        shape,
        family="esm",
        max_length=1026,
        norm_first=True,
        norm_eps=1e-5,
        embedding_norm=False,
        positions="rope",
        token_types=0,
        token_dropout=True,
        dropout=0.0,
        attention_dropout=0.0,
    )


# ---- recipes -------------------------------------------------------------------------------------

_BERT_TEXT = DataConfig(length=512, tokenizer_kind="wordpiece", tokenizer_limit=30_528, lowercase=True)
_ROBERTA_TEXT = DataConfig(
    length=512, tokenizer_kind="bpe", tokenizer_limit=50_304, special_tokens="roberta", pack="plain"
)
_ALBERT_TEXT = DataConfig(length=512, tokenizer_kind="unigram", tokenizer_limit=30_016, lowercase=True)
_MODERNBERT_TEXT = DataConfig(length=1024, tokenizer_kind="bpe", tokenizer_limit=50_368)

_PROTEINS = DataConfig(length=1024, tokenizer_kind="protein", tokenizer_limit=33)

_BERT_OPTIM = OptimConfig(lr=1e-4, schedule="linear", warmup=0.01, beta2=0.999, adam_eps=1e-6)
_ROBERTA_OPTIM = OptimConfig(lr=6e-4, schedule="linear", warmup=0.048, adam_eps=1e-6, clip=0.0)
_ALBERT_OPTIM = OptimConfig("lamb", lr=1.76e-3, schedule="linear", warmup=0.025, beta2=0.999, adam_eps=1e-6)
_DISTILBERT_OPTIM = OptimConfig(lr=5e-4, schedule="linear", warmup=0.05, adam_eps=1e-6, weight_decay=0.0, clip=5.0)
_ESM2_OPTIM = OptimConfig(lr=4e-4, schedule="linear", warmup=0.004)
_MODERNBERT_OPTIM = OptimConfig(lr=8e-4, warmup=0.002, decay=0.03, adam_eps=1e-6, weight_decay=1e-5)

_FALLING = MaskConfig(mask_rate=0.3, mask_rate_end=0.15)
"""GPT-BERT's masks (arXiv 2410.24159)."""
_NGRAMS = MaskConfig(mask_rule="span", span_mean=1.8, span_max=3)
"""ALBERT hides n-grams of up to three, in proportion to 1/n: 55, 27 and 18 %; this draws 56, 25 and 19 %."""


def _minutes(preset: str, shape: ModelConfig, lr: float = OptimConfig.lr) -> TrainConfig:
    """What minutes of a processor are spent on: all but shape and rate was measured for `tiny`."""
    return TrainConfig(
        preset=preset,
        steps=10_000,
        embeddings="counted",
        model=replace(shape, global_every=2, local_window=16),
        mask=MaskConfig(mask_rate=0.4, mask_rate_end=0.15),
        optim=OptimConfig("muon", lr=lr, weight_decay=0.1, decay=0.55),
    )


_ALL = (
    TrainConfig(
        preset="sentence",
        steps=300,
        batch=32,
        dtype="float32",  # its steps are too small to gain anything
        eval_every=100,
        model=ModelConfig(width=128, layers=3, heads=4, ff_width=256, max_length=64),
        corpus=DataConfig(length=16, tokenizer_kind="word"),
        optim=OptimConfig(lr=1e-3),
    ),
    _minutes("nano", ModelConfig(width=128, layers=2, heads=2, ff_width=192), lr=4e-3),
    _minutes("micro", ModelConfig(width=192, layers=3, heads=3, ff_width=288)),
    _minutes("tiny", ModelConfig(width=256, layers=4, heads=4, ff_width=384)),
    TrainConfig(
        preset="small",
        steps=50_000,
        batch=128,
        model=ModelConfig(width=512, layers=8, heads=8, ff_width=768),
        corpus=DataConfig(length=256, tokenizer_limit=16_384),
        mask=_FALLING,
        optim=OptimConfig(lr=1e-3),
    ),
    TrainConfig(
        preset="base",
        steps=100_000,
        batch=512,
        model=ModelConfig(width=768, layers=12, heads=12, ff_width=1152),
        corpus=DataConfig(length=512, tokenizer_limit=32_768),
        mask=_FALLING,
        optim=OptimConfig(lr=8e-4),
    ),
    TrainConfig(
        preset="large",
        steps=200_000,
        batch=1024,
        accumulate=4,
        model=ModelConfig(width=1024, layers=24, heads=16, ff_width=1536),
        corpus=DataConfig(length=512, tokenizer_limit=32_768),
        mask=_FALLING,
        optim=OptimConfig(lr=5e-4),
    ),
    TrainConfig(
        preset="bert-base",
        steps=1_000_000,
        batch=256,
        model=_bert(768, 12, 12),
        corpus=_BERT_TEXT,
        optim=_BERT_OPTIM,
    ),
    TrainConfig(
        preset="bert-large",
        steps=1_000_000,
        batch=256,
        accumulate=4,
        model=_bert(1024, 24, 16),
        corpus=_BERT_TEXT,
        optim=_BERT_OPTIM,
    ),
    TrainConfig(
        preset="roberta-base",
        steps=500_000,
        batch=8192,
        accumulate=64,
        model=_roberta(768, 12, 12),
        corpus=_ROBERTA_TEXT,
        optim=_ROBERTA_OPTIM,
    ),
    TrainConfig(
        preset="roberta-large",
        steps=500_000,
        batch=8192,
        accumulate=128,
        model=_roberta(1024, 24, 16),
        corpus=_ROBERTA_TEXT,
        optim=replace(_ROBERTA_OPTIM, lr=4e-4, warmup=0.06),
    ),
    TrainConfig(
        preset="albert-base",
        steps=125_000,
        batch=4096,
        accumulate=32,
        model=_albert(768, 12, 12),
        corpus=_ALBERT_TEXT,
        mask=_NGRAMS,
        optim=_ALBERT_OPTIM,
    ),
    TrainConfig(
        preset="albert-large",
        steps=125_000,
        batch=4096,
        accumulate=64,
        model=_albert(1024, 24, 16),
        corpus=_ALBERT_TEXT,
        mask=_NGRAMS,
        optim=_ALBERT_OPTIM,
    ),
    # Three times over BERT's text (Sanh et al. 2019); made to be trained with --distil.
    TrainConfig(
        preset="distilbert-base",
        steps=6_000,
        batch=4096,
        accumulate=32,
        model=replace(_bert(768, 6, 12), family="distilbert", token_types=0),
        corpus=_BERT_TEXT,
        optim=_DISTILBERT_OPTIM,
    ),
    # 1.7 trillion tokens in rows of 1024; theta and length are those after its last phases.
    TrainConfig(
        preset="modernbert-base",
        steps=364_000,
        batch=4608,
        accumulate=72,
        model=_modernbert(768, 22, 12, 1152),
        corpus=_MODERNBERT_TEXT,
        mask=MaskConfig(mask_rate=0.3),
        optim=_MODERNBERT_OPTIM,
    ),
    TrainConfig(
        preset="modernbert-large",
        steps=340_000,
        batch=4928,
        accumulate=154,
        model=_modernbert(1024, 28, 16, 2624),
        corpus=_MODERNBERT_TEXT,
        mask=MaskConfig(mask_rate=0.3),
        optim=replace(_MODERNBERT_OPTIM, lr=5e-4),
    ),
    # Two million residues a step; the paper's rate falls to a tenth of its peak, this one to zero.
    TrainConfig(
        preset="esm2-t6-8m",
        steps=500_000,
        batch=2048,
        accumulate=32,
        model=_esm2(320, 6, 20),
        corpus=_PROTEINS,
        optim=_ESM2_OPTIM,
    ),
)
PRESETS: Mapping[str, TrainConfig] = types.MappingProxyType({config.preset: config for config in _ALL})


def preset_for(name: str, given: Mapping[str, Any]) -> TrainConfig:
    """Return the preset that options override: its masks are constant where they give a rate, or weights to begin with.

    What continues from weights has the last rate: masks that become fewer were measured from new weights only.
    """
    chosen = PRESETS[name]
    if "mask_rate" in given:
        return replace(chosen, mask=replace(chosen.mask, mask_rate_end=-1.0))
    return replace(chosen, mask=chosen.mask.constant) if {"init", "distil"}.intersection(given) else chosen


SENTENCE = "This model creates a super relationships between the words to predict what word"
"""The founding sentence: 13 words, which with [PAD], [UNK] and [MASK] make a vocabulary of 16."""
