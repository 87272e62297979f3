"""From the configuration to rows of tokens: tokenizer, token files, packing, and the validation split."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import DataConfig, TrainConfig
from jax_mlm.data.alphabet import alphabet_tokenizer
from jax_mlm.data.batches import Rows, pack_rows, split_documents
from jax_mlm.data.prepare import TokenFiles, prepare
from jax_mlm.data.sources import documents, expand
from jax_mlm.data.tokenizer import (
    Vocabulary,
    VocabularyTooLarge,
    load_tokenizer,
    padded_size,
    train_tokenizer,
    vocabulary_of,
)
from jax_mlm.errors import UserError
from jax_mlm.files import cache_folder, make_folder, write_atomically
from jax_mlm.presets import SENTENCE
from jax_mlm.run.directory import TOKENIZER_FILE


class Dataset(NamedTuple):
    """What training reads."""

    config: TrainConfig
    """With the vocabulary size filled in."""
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    train: Rows
    valid: Rows
    held_out: bool
    """False where validation has to use the training text (one sentence)."""
    fingerprints: dict[str, str]


def _sentence_file(cache: Path) -> Path:
    path = cache / "sentence.txt"
    if not path.exists():
        make_folder(cache, "--cache")
        write_atomically(path, SENTENCE + "\n")
    return path


def _new_tokenizer(files: Sequence[Path], corpus: DataConfig, say: Callable[[str], None]) -> Tokenizer:
    """Train one on the text: of the size asked for, else of the preset's or what the text supports."""
    if corpus.tokenizer_kind == "protein":
        for name in ("tokenizer_size", "lowercase", "special_tokens"):
            if getattr(corpus, name) != getattr(DataConfig, name):
                raise UserError(
                    f"--{name.replace('_', '-')}: the alphabet of --tokenizer-kind protein is fixed; leave it out"
                )
        return alphabet_tokenizer()

    def trained(size: int) -> Tokenizer:
        say(f"training a {corpus.tokenizer_kind} tokenizer of {size} tokens")
        texts = documents(files, corpus.document, corpus.text_field)
        return train_tokenizer(texts, corpus.tokenizer_kind, size, corpus.lowercase, corpus.special_tokens)

    if corpus.tokenizer_size:
        return trained(corpus.tokenizer_size)
    try:
        return trained(corpus.tokenizer_limit)
    except VocabularyTooLarge as error:
        if not error.reachable:
            kind = corpus.tokenizer_kind
            raise UserError(
                f"--data: too little text for a {kind} tokenizer: give more, or --tokenizer-kind word"
            ) from error
        return trained(error.reachable)


def open_dataset(
    config: TrainConfig,
    run: Path,
    say: Callable[[str], None] | None = None,
    given: Tokenizer | None = None,
) -> Dataset:
    """Read, tokenise and pack the text with the `given` tokenizer (that of --init), --tokenizer, or a new one.

    A resumed run uses its own.

    Raises:
        UserError: missing, empty or unreadable text, or a vocabulary larger than the text supports.
    """
    say = say or (lambda text: print(text, file=sys.stderr))
    cache, corpus = cache_folder(config), config.corpus
    train_files = expand(config.data, "--data") if config.data else (_sentence_file(cache),)
    valid_files = expand(config.valid, "--valid") if config.valid else ()

    if config.resume:
        tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    elif given is not None:
        tokenizer = given
    elif config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
    else:
        tokenizer = _new_tokenizer(train_files, corpus, say)
    vocabulary = vocabulary_of(tokenizer)
    if not config.model.vocab_size:
        kind = "word" if config.preset == "sentence" else corpus.tokenizer_kind
        config = replace(config, model=replace(config.model, vocab_size=padded_size(vocabulary.size, kind)))
    elif config.model.vocab_size < vocabulary.size:
        raise UserError(f"--vocab-size {config.model.vocab_size} is less than the tokenizer's {vocabulary.size} tokens")

    if config.model.token_dropout and config.model.mask_id != vocabulary.mask:
        if config.model.mask_id >= 0:
            raise UserError(
                f"--mask-id {config.model.mask_id} is not the tokenizer's mask, {vocabulary.mask}: leave it out"
            )
        config = replace(config, model=replace(config.model, mask_id=vocabulary.mask))

    def rows(files: TokenFiles, chosen: np.ndarray | None = None) -> Rows:
        return pack_rows(files, vocabulary, corpus.length, corpus.pack, chosen)

    text = prepare(train_files, tokenizer, vocabulary, corpus, cache)
    fingerprints = {"train": text.fingerprint}
    if not config.data:
        train = valid = rows(text)
    elif valid_files:
        held = prepare(valid_files, tokenizer, vocabulary, corpus, cache)
        fingerprints["valid"] = held.fingerprint
        train, valid = rows(text), rows(held)
    else:
        train_ids, valid_ids = split_documents(len(text.documents) - 1, corpus.valid_fraction, config.seed)
        train, valid = rows(text, train_ids), rows(text, valid_ids)
    return Dataset(config, tokenizer, vocabulary, train, valid, bool(config.data), fingerprints)
