"""What was read, said before a run trains on it: one summary, warnings, and what there is nothing to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from jax_mlm.config import Json, MaskConfig, TrainConfig
from jax_mlm.data.batches import Rows, batch_of
from jax_mlm.data.dataset import Dataset
from jax_mlm.data.sources import may_be_text
from jax_mlm.data.token_files import Figures
from jax_mlm.tasks.masking import slots

LOOKED_AT = 512
"""Rows that the targets of a step are estimated from."""
LEFT_OUT = 6
"""Suffixes of files left out that are named one by one."""
FEW_CHARACTERS = 0.75
"""Characters a token, below which a tokenizer that knows each byte was made for other text."""
MOST_UNKNOWN, SOME_UNKNOWN, SOME_COPIES = 0.5, 0.01, 0.01
"""Parts of the tokens, and of the validation documents, from which a run is refused or a warning is given."""
REREAD = 40
"""Readings of a text after which another teaches next to nothing (Muennighoff et al. 2023, measured on decoders)."""
FEW_REACHABLE = 0.1
"""Part of the tokens, below which a masking rule that can hide no more is refused."""


class Targets(NamedTuple):
    """What a step has to learn from, on average."""

    hidden: float
    """Targets."""
    eligible: float
    """Share of the tokens that may be targets at all."""
    reachable: float
    """Share of those that the masking rule can choose: a word of too many tokens is never hidden."""


class Survey(NamedTuple):
    """What there is to say about the text."""

    figures: Json
    """The figures that run.json keeps."""
    lines: tuple[str, ...]
    warnings: tuple[str, ...]
    refusal: str | None
    """Why there is nothing to learn, and what to do about it."""


def survey(data: Dataset) -> Survey:
    """Look at what was read and at what a step will hide of it."""
    targets = expected_targets(data.train, data.config.mask, data.config.batch)
    figures = _figures(data, targets)
    return Survey(figures, _lines(data, figures, targets), tuple(_warnings(data, targets)), _refusal(data, targets))


def doubt_of_readings(times: float) -> str:
    """Return what to warn of where a text is read so many times in the time there is; empty where all is well."""
    if times > REREAD:
        return (
            f"the text will be read about {times:,.0f} times, and after {REREAD} another reading teaches next to "
            "nothing: give more text, or less time"
        )
    if times < 0.95:
        part = "less than 1%" if times < 0.01 else f"about {times:.0%}"
        return f"there is time for {part} of the text: give more time for all of it"
    return ""


def expected_targets(rows: Rows, mask: MaskConfig, batch: int) -> Targets:
    """Estimate the targets of a step of `batch` rows, at the rate that the first step has."""
    looked_at = batch_of(rows, np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT).astype(np.int64)))
    special = np.zeros(rows.vocabulary.size, bool)
    special[list(rows.vocabulary.special)] = True
    words, content = np.asarray(looked_at.words), np.asarray(looked_at.words) >= 0
    eligible = content & ~special[np.asarray(looked_at.tokens)]
    reachable = eligible
    if mask.mask_rule == "whole-word":
        number = words + np.arange(len(words))[:, None] * rows.length
        sizes = np.bincount(number[content], minlength=words.size)
        reachable = eligible & (sizes[np.where(content, number, 0)] <= slots(mask, rows.length))
    hidden = mask.mask_rate * reachable.sum() / len(words) * batch
    return Targets(hidden, eligible.sum() / max(content.sum(), 1), reachable.sum() / max(eligible.sum(), 1))


def _figures(data: Dataset, targets: Targets) -> Json:
    read, text = data.read, data.read.train
    known: Json = {}
    if text is not None:
        tokens = max(len(data.train.files.tokens), 1)
        known["characters_per_token"] = round(text.characters / tokens, 4)
        known["unknown"] = round(text.unknown / tokens, 6)
        known["in_both"] = read.both
    return {
        "files": read.files,
        "left_out": dict(read.left_out),
        "documents": read.train_documents,
        "validation_documents": read.valid_documents,
        "dropped": read.dropped,
        "tokens": read.tokens,
        **known,
        "targets_per_step": round(targets.hidden, 1),
    }


def _lines(data: Dataset, figures: Json, targets: Targets) -> tuple[str, ...]:
    read = data.read
    documents = f"{_count(read.train_documents, 'document')} to train on, {read.valid_documents:,} to validate"
    parts = [f"text: {_count(read.files, 'file')}", documents]
    if read.dropped:
        parts.append(f"{_count(read.dropped, 'copy', 'copies')} dropped")
    parts.append(_count(read.tokens, "token"))
    if read.train is not None:
        parts.append(f"{figures['characters_per_token']:.2f} characters a token")
        parts.append(f"{_percent(figures['unknown'])} unknown")
        parts.append(f"{_count(read.both, 'validation document')} in the training text too")
    hidden = f"{targets.hidden:,.0f}" if targets.hidden >= 1 else f"{targets.hidden:.1g}"
    lines = [", ".join([*parts, f"about {hidden} targets a step"])]
    left_out = sorted(read.left_out.items(), key=lambda entry: -entry[1])
    for glob, count in left_out[:LEFT_OUT]:
        how = f"which a glob takes: --data '{glob}'" if may_be_text(glob) else "not text"
        lines.append(f"left out: {_count(count, 'file')} ({PurePath(glob).suffix or 'no suffix'}), {how}")
    if rest := left_out[LEFT_OUT:]:
        more = _count(sum(count for _, count in rest), "file")
        lines.append(f"left out: {more} more, of {_count(len(rest), 'suffix', 'suffixes')}")
    return tuple(lines)


def _warnings(data: Dataset, targets: Targets) -> Iterator[str]:
    read = data.read
    for option, text, tokens in _texts(data):
        share = text.unknown / max(tokens, 1)
        if share > SOME_UNKNOWN and (share <= MOST_UNKNOWN or data.config.resume):  # else it is refused
            yield f"{option}: {_percent(share)} of the tokens are unknown and never learned: {_remedy(data, text)}"
        elif share <= SOME_UNKNOWN and not read.tokenizer_kind and text.characters < FEW_CHARACTERS * tokens:
            yield f"{option}: each character takes {tokens / max(text.characters, 1):.1f} tokens: {_remedy(data, text)}"
    if targets.hidden < 1 and targets.reachable >= FEW_REACHABLE:
        yield "most steps hide nothing, and learn nothing: raise --mask-rate or --batch"
    if read.both > SOME_COPIES * read.valid_documents:
        yield (
            f"{_percent(read.both / read.valid_documents)} of the validation documents stand in the training text "
            "as well, which makes the figures look better than they are: --dedup drops copies"
        )
    if FEW_REACHABLE <= targets.reachable < 0.5:
        yield (
            f"--mask-rule whole-word can hide only {_percent(targets.reachable)} of the tokens, the other words are "
            "too long: take --mask-rule token or span"
        )


def _refusal(data: Dataset, targets: Targets) -> str | None:
    for option, text, tokens in _texts(data):
        share = text.unknown / max(tokens, 1)
        if share > MOST_UNKNOWN:
            unknown = f"{_percent(share)} of the tokens are unknown, so there is little to learn"
            return f"{option}: {unknown}: {_remedy(data, text)}"
        if text.special == tokens:
            return f"{option}: all tokens are special ones, so there is nothing to learn: {_remedy(data, text)}"
    if targets.reachable < FEW_REACHABLE:
        return (
            f"{_percent(targets.reachable)} of the tokens can be hidden, so there is nothing to learn: --mask-rule "
            f"whole-word leaves words of more than {slots(data.config.mask, data.train.length)} tokens as they are; "
            "take --mask-rule token or span"
        )
    return None


def _texts(data: Dataset) -> Iterator[tuple[str, Figures, int]]:
    if data.read.train is not None:
        yield "--data", data.read.train, len(data.train.files.tokens)
    if data.read.valid is not None:
        yield "--valid", data.read.valid, len(data.valid.files.tokens)


def _remedy(data: Dataset, text: Figures) -> str:
    """Return what makes unknown tokens known."""
    config: TrainConfig = data.config
    if text.written > 0.5 * text.unknown:
        return "the text itself says <unk> there; take the raw version of it, if there is one"
    if config.resume:
        return "a resumed run keeps its tokenizer: start a new run to have another"
    if not data.read.tokenizer_kind:
        option = "--tokenizer" if config.tokenizer else "--init" if config.init else "--distil"
        return f"the tokenizer of {option} was made for other text; without it one is trained on yours"
    larger = f"a larger --tokenizer-{'size' if config.corpus.tokenizer_size else 'limit'}"
    if data.read.tokenizer_kind == "word":
        return f"--tokenizer-kind bpe cuts words into pieces that it knows; {larger} keeps more words"
    return f"--tokenizer-kind bpe knows every character; {larger} has room for more of them"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
