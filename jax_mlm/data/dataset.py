"""From the configuration to rows of tokens: tokenizer, token files, packing, and the validation split."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import DataConfig, Json, TrainConfig
from jax_mlm.data.alphabet import alphabet_tokenizer
from jax_mlm.data.batches import Rows, check_split, pack_rows, split_documents
from jax_mlm.data.choice import choose_kind, misfit
from jax_mlm.data.copies import copies, without_copies
from jax_mlm.data.prepare import LINE_EVERY, Progress, TokenFiles, awaited, display, prepare
from jax_mlm.data.sources import STDIN, Sources, blocks, find_sources, spooled
from jax_mlm.data.token_files import Figures
from jax_mlm.data.tokenizer import (
    SAMPLE,
    Kind,
    Vocabulary,
    VocabularyTooLarge,
    evenly,
    load_tokenizer,
    padded_size,
    train_tokenizer,
    vocabulary_of,
    without_unknown,
)
from jax_mlm.errors import UserError
from jax_mlm.files import cache_folder, make_folder, patience, write_atomically
from jax_mlm.presets import SENTENCE
from jax_mlm.run.directory import RUN_FILE, TOKENIZER_FILE, read_run_file

LEAST = 64
"""Smallest vocabulary of pieces worth training on; a text that yields fewer needs a vocabulary of words."""


class Read(NamedTuple):
    """What was read, for the summary before a training."""

    files: int
    left_out: Mapping[str, int]
    """Files of folders that were not taken, by a glob that takes them."""
    tokenizer_kind: str
    """The kind of the tokenizer trained for this run; empty if the run was given one."""
    tokenizer_reason: str
    train: Figures | None
    """None if the token files have an earlier format."""
    valid: Figures | None
    """None without --valid."""
    tokens: int
    """Number of tokens in the documents of --data that were not dropped."""
    train_documents: int
    valid_documents: int
    dropped: int
    """Documents that --dedup left out."""
    both: int
    """Documents to validate on that stand in the text to train on as well."""


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
    read: Read
    sources: dict[str, Mapping[str, str]]
    """Each text's path and the hash of its bytes, to train and to validate on."""


def _sentence_file(cache: Path) -> Path:
    path = cache / "sentence.txt"
    if not path.exists():
        make_folder(cache, "--cache")
        write_atomically(path, SENTENCE + "\n")
    return path


def _new_tokenizer(
    files: Sequence[Path], corpus: DataConfig, held_out: bool, say: Callable[[str], None]
) -> tuple[Tokenizer, DataConfig, str]:
    """Train one on the text: of the kind and size asked for, else of those that fit; return the reason for the kind.

    The text is read once; one of which no part can be `held_out` is refused then, before the long work.
    """
    if corpus.tokenizer_kind == "protein":
        for name in ("tokenizer_size", "lowercase", "strip_accents", "special_tokens"):
            if getattr(corpus, name) != getattr(DataConfig, name):
                raise UserError(
                    f"--{name.replace('_', '-')}: the alphabet of --tokenizer-kind protein is fixed; leave it out"
                )
        return alphabet_tokenizer(), corpus, "given"
    total = sum(path.stat().st_size for path in files)
    with display("reading text for the tokenizer", total) as report:
        counted = Counter[str]()
        sample = evenly(map(without_unknown, _reported(files, corpus, report, counted)), SAMPLE)
    if held_out and any(text.strip() for text in sample):
        check_split(counted["documents"], corpus.valid_fraction)
    choice, reason, why = choose_kind(sample), "given", ""
    if corpus.tokenizer_kind == "auto":
        corpus, reason, why = replace(corpus, tokenizer_kind=choice.kind), choice.reason, f", chosen: {choice.reason}"
    elif lost := misfit(corpus.tokenizer_kind, choice):
        say(f"warning: --tokenizer-kind {corpus.tokenizer_kind}: {lost}; --tokenizer-kind {choice.kind} fits better")
    kind = cast(Kind, corpus.tokenizer_kind)

    def trained(size: int) -> Tokenizer:
        say(f"training a {kind} tokenizer of {size} tokens{why}")
        watched = sys.stderr.isatty()  # it has bars of its own there
        with nullcontext() if watched else patience("training the tokenizer", LINE_EVERY):
            return train_tokenizer(
                sample, kind, size, corpus.lowercase, corpus.special_tokens, corpus.strip_accents, watched
            )

    def reached(error: VocabularyTooLarge) -> tuple[Tokenizer, int]:
        """Return the largest tokenizer that the text supports."""
        while True:
            try:
                return trained(error.reachable), error.reachable
            except VocabularyTooLarge as again:
                if again.reachable >= error.reachable:
                    raise
                error = again

    try:
        return trained(corpus.tokenizer_size or corpus.tokenizer_limit), corpus, reason
    except VocabularyTooLarge as error:
        tokenizer, size = reached(error)
        if corpus.tokenizer_size:  # what is proposed has been tried
            raise VocabularyTooLarge(corpus.tokenizer_size, size) from error
        if size < LEAST and kind != "word":
            raise UserError(
                f"--data: too little text for a {kind} tokenizer, which finds {size} entries in it: give more text, or "
                "--tokenizer-kind word"
            ) from error
        return tokenizer, corpus, reason


def _reported(files: Sequence[Path], corpus: DataConfig, report: Progress, counted: Counter[str]) -> Iterator[str]:
    """Yield all documents, count them, and report how many bytes of the files they took."""
    total, before = sum(path.stat().st_size for path in files), 0
    for path in files:
        for block in awaited(path, blocks(path, corpus.document, corpus.text_field)):
            report(before + block.consumed, total)
            counted["documents"] += sum(block.starts)
            yield from block.texts
        before += path.stat().st_size


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
    if [*config.data, *config.valid].count(STDIN) > 1:
        raise UserError("--data - and --valid -: standard input can be read once")
    config = replace(
        config,
        data=spooled(config.data, "--data", cache, corpus.text_field),
        valid=spooled(config.valid, "--valid", cache, corpus.text_field),
    )
    sources = find_sources(config.data) if config.data else Sources((_sentence_file(cache),), {})
    valid_sources = find_sources(config.valid, "--valid") if config.valid else Sources((), {})

    kind = reason = ""
    if config.resume:
        tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    elif given is not None:
        tokenizer = given
    elif config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
    else:
        tokenizer, corpus, reason = _new_tokenizer(
            sources.files, corpus, bool(config.data) and not valid_sources.files, say
        )
        kind, config = corpus.tokenizer_kind, replace(config, corpus=corpus)
    vocabulary = vocabulary_of(tokenizer)
    config = _with_vocabulary(config, vocabulary)

    def rows(files: TokenFiles, chosen: np.ndarray | None = None) -> Rows:
        return pack_rows(files, vocabulary, corpus.length, corpus.pack, chosen)

    before = _before(run) if config.resume else {}

    def prepared(paths: Sequence[Path], role: str) -> TokenFiles:
        key, began = before.get(role, ""), before.get("sources", {}).get(role)
        return prepare(paths, tokenizer, vocabulary, corpus, cache, before=key, began=began)

    text = prepared(sources.files, "train")
    fingerprints, named = {"train": text.fingerprint}, {"train": text.sources}
    held = text
    if valid_sources.files:
        held = prepared(valid_sources.files, "valid")
        fingerprints["valid"], named["valid"] = held.fingerprint, held.sources
    train_ids, valid_ids = _divided(config, text, held)
    both = copies(held, valid_ids, text, train_ids) if config.data else 0
    used = len(train_ids) + (len(valid_ids) if config.data and held is text else 0)
    read = Read(
        len(sources.files) + len(valid_sources.files),
        {**sources.left_out, **valid_sources.left_out},
        kind,
        reason,
        text.figures,
        held.figures if held is not text else None,
        _tokens(text, train_ids) + (_tokens(text, valid_ids) if config.data and held is text else 0),
        len(train_ids),
        len(valid_ids),
        _documents(text) - used,
        both,
    )
    train = rows(text, None if len(train_ids) == _documents(text) else train_ids)
    valid = train if not config.data else rows(held, None if held is not text else valid_ids)
    return Dataset(config, tokenizer, vocabulary, train, valid, bool(config.data), fingerprints, read, named)


def _with_vocabulary(config: TrainConfig, vocabulary: Vocabulary) -> TrainConfig:
    """Return the configuration with the size of its vocabulary and, where the model counts masks, with their token.

    Raises:
        UserError: the size or the token that is given does not fit the tokenizer.
    """
    model = config.model
    if not model.vocab_size:
        rounding = "word" if config.preset == "sentence" else config.corpus.tokenizer_kind
        model = replace(model, vocab_size=padded_size(vocabulary.size, rounding))
    elif model.vocab_size < vocabulary.size:
        raise UserError(f"--vocab-size {model.vocab_size} is less than the tokenizer's {vocabulary.size} tokens")
    if model.token_dropout and model.mask_id != vocabulary.mask:
        if model.mask_id >= 0:
            raise UserError(f"--mask-id {model.mask_id} is not the tokenizer's mask, {vocabulary.mask}: leave it out")
        model = replace(model, mask_id=vocabulary.mask)
    return replace(config, model=model)


def _divided(config: TrainConfig, text: TokenFiles, held: TokenFiles) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the documents of `text` to train on, and of those of `held` to validate on.

    Raises:
        UserError: without copies there is nothing to train on.
    """
    every, dedup = np.arange(_documents(text)), config.corpus.dedup
    if held is not text:
        valid_ids = np.arange(_documents(held))
        train_ids = without_copies(text, every, held, valid_ids) if dedup else every
        if not len(train_ids) and len(every):
            raise UserError("--dedup leaves nothing to train on: each document of --data stands in --valid as well")
        return train_ids, valid_ids
    if not config.data:
        return every, every
    kept = without_copies(text, every) if dedup else every
    first, last = split_documents(len(kept), config.corpus.valid_fraction, config.seed)
    return kept[first], kept[last]


def _documents(files: TokenFiles) -> int:
    return len(files.documents) - 1


def _tokens(files: TokenFiles, ids: np.ndarray) -> int:
    return int((files.documents[ids + 1].astype(np.int64) - files.documents[ids].astype(np.int64)).sum())


def _before(run: Path) -> Json:
    """Return what `run.json` records of the text that a run began with."""
    return read_run_file(run).get("data", {}) if (run / RUN_FILE).is_file() else {}
