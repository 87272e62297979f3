"""Tokenizers and graphs that bundles are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from mlm_onnx.convert.parity import LOGITS, onnx_side, open_session
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
ONE_SHAPE = ((1, 7, 2),)
"""Shapes to compare a bundle on if the comparison is not what is tested; test_convert covers the other shapes."""


@cache
def piecewise(kind: str) -> Tokenizer:
    """Return a small tokenizer of a kind."""
    return train_tokenizer(TEXTS, kind, 320)  # type: ignore[arg-type]


def fast_side(file: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return (input_ids, positions) → the answers of a graph of `fast/`."""
    side = onnx_side(open_session(file, LOGITS.options))
    return lambda input_ids, positions: side(input_ids=input_ids, positions=positions)
