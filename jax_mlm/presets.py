"""Named sets of defaults: shapes and recipes of our own, and those that the papers of the five families give."""

from __future__ import annotations

import types
from collections.abc import Mapping

from jax_mlm.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


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


PRESETS: Mapping[str, TrainConfig] = types.MappingProxyType(
    {
        "sentence": TrainConfig(
            steps=300,
            batch=32,
            eval_every=100,
            model=ModelConfig(width=128, layers=3, heads=4, ff_width=256, max_length=64),
            corpus=DataConfig(length=16, tokenizer_kind="word"),
            optim=OptimConfig(lr=1e-3),
        ),
        "tiny": TrainConfig(
            preset="tiny",
            steps=10_000,
        ),
        "small": TrainConfig(
            preset="small",
            steps=50_000,
            batch=128,
            model=ModelConfig(width=512, layers=8, heads=8, ff_width=768),
            corpus=DataConfig(length=256, tokenizer_limit=16_384),
            optim=OptimConfig(lr=1e-3),
        ),
        "base": TrainConfig(
            preset="base",
            steps=100_000,
            batch=512,
            model=ModelConfig(width=768, layers=12, heads=12, ff_width=1152),
            corpus=DataConfig(length=512, tokenizer_limit=32_768),
            optim=OptimConfig(lr=8e-4),
        ),
        "large": TrainConfig(
            preset="large",
            steps=200_000,
            batch=1024,
            accumulate=4,
            model=ModelConfig(width=1024, layers=24, heads=16, ff_width=1536),
            corpus=DataConfig(length=512, tokenizer_limit=32_768),
            optim=OptimConfig(lr=5e-4),
        ),
        "bert-base": TrainConfig(
            preset="bert-base",
            steps=1_000_000,
            batch=256,
            model=_bert(768, 12, 12),
            corpus=DataConfig(length=512, tokenizer_limit=30_528, lowercase=True),
            optim=OptimConfig(lr=1e-4, schedule="linear", warmup=0.01, beta2=0.999, adam_eps=1e-6),
        ),
    }
)
