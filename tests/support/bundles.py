"""What bundles are made of."""

from __future__ import annotations

from dataclasses import replace

from tokenizers import Tokenizer

from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.presets import PRESETS

ORIGIN = {"run": "test", "preset": "sentence", "step": 7, "versions": {}}
SENTENCE_MODEL = replace(PRESETS["sentence"].model, vocab_size=16)
SYLLABLES = ("ba", "do", "gar", "den", "play", "cat", "mi", "nu", "ter", "sol", "wa", "the", "ing", "s", "ed")
TEXTS = [
    f"The cat was in the garden, {a}{b} and {b}s {c}{a}{b} {b}{c}ing: {c}{b} again."
    for a in SYLLABLES
    for b in SYLLABLES
    for c in SYLLABLES
]
KINDS = ("wordpiece", "bpe", "unigram")


def piecewise(kind: str) -> Tokenizer:
    return train_tokenizer(TEXTS, kind, 320)  # type: ignore[arg-type]
