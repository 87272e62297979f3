"""Models of named shapes with random weights and made-up words, and texts of a given length for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from jax_mlm.config import ModelConfig

SPECIAL = ("pad", "unk", "cls", "sep", "mask")
SHAPES = ("bert-base", "small", "tiny")
"""The last one is for trying out a benchmark."""


def shaped(shape: str) -> ModelConfig:
    """Return the configuration of a BERT of a named shape."""
    from jax_mlm.presets import PRESETS

    config = replace(PRESETS["bert-base"].model, vocab_size=30_522)
    match shape:
        case "bert-base":
            return config
        case "small":
            return replace(config, width=256, layers=4, heads=4, ff_width=1024, vocab_size=8192)
        case "tiny":
            return replace(config, width=64, layers=2, heads=2, ff_width=128, vocab_size=512)
    raise ValueError(f"unknown shape {shape}")


def made_up_words(size: int) -> Tokenizer:
    """Return a WordPiece tokenizer whose words w0, w1, … are one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = [f"[{role.upper()}]" for role in SPECIAL]
    words = [*special, *(f"w{i}" for i in range(size - len(special)))]
    tokenizer = Tokenizer(models.WordPiece({word: id for id, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def write_hugging_face(folder: Path, config: ModelConfig) -> None:
    """Write a directory that transformers can load, with random weights as at the start of training."""
    import jax

    from jax_mlm.hf.config import hf_config
    from jax_mlm.hf.tokenizer import hf_tokenizer_config
    from jax_mlm.hf.weights import WEIGHTS, write_params
    from jax_mlm.model.heads import init_params

    folder.mkdir()
    made_up_words(config.vocab_size).save(str(folder / "tokenizer.json"))
    special = {role: f"[{role.upper()}]" for role in SPECIAL}
    write_params(folder / WEIGHTS, jax.device_get(init_params(config, jax.random.key(0))), config)
    for name, values in (
        ("config.json", hf_config(config, 0, 2, 3)),
        ("tokenizer_config.json", hf_tokenizer_config(special, config.max_length, config.token_types)),
    ):
        (folder / name).write_text(json.dumps(values))


def texts(tokenizer_file: Path, tokens: int, count: int) -> list[str]:
    """Return texts of exactly `tokens` tokens: random whole words of the vocabulary, and one mask each."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    mask = next(word for word in ("[MASK]", "<mask>") if tokenizer.token_to_id(word) is not None)
    framed = len(tokenizer.encode(mask).ids) - 1
    single = [
        word
        for word in sorted(tokenizer.get_vocab(with_added_tokens=False))
        if word.isalnum() and len(tokenizer.encode(f"{word} {word}", add_special_tokens=False).ids) == 2
    ][:20_000]
    rng, written = np.random.default_rng(tokens), []
    while len(written) < count:
        words = [str(word) for word in rng.choice(single, tokens - framed)]
        words[rng.integers(len(words))] = mask
        assert len(tokenizer.encode(" ".join(words)).ids) == tokens
        written.append(" ".join(words))
    return written
