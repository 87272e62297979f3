"""How each kind of tokenizer learns its vocabulary: words, WordPiece, byte-level BPE, Unigram."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jax_mlm.errors import UserError

LONGEST_WORD = 100
"""Characters of a word that WordPiece reads (BERT's limit); a longer word is cut."""
PARTS = re.compile(rf"\s*\S{{1,{LONGEST_WORD}}}")
CHARACTERS, COVERED, REST = 1000, 0.9999, 1 / 64
"""A vocabulary holds at least so many characters and so much of the text in single characters, where it has room; the
rest of them too, where they take no more than this part of it."""
LITERAL_UNKNOWN = "<unk>"
"""What WikiText and its kin write for a word outside their own vocabulary."""
NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "unk": ("[UNK]", "<unk>", "<|unk|>"),
    "cls": ("[CLS]", "<s>", "<cls>", "[BOS]", "<bos>"),
    "sep": ("[SEP]", "</s>", "<sep>", "[EOS]", "<eos>"),
}


class Learn(NamedTuple):
    """What a vocabulary is learned from, and how."""

    sample: list[str]
    size: int
    lowercase: bool
    strip_accents: bool
    special: Sequence[str]
    show_progress: bool


class Learned(NamedTuple):
    """A tokenizer, and the entries that it needs at least: special tokens and single characters or bytes."""

    tokenizer: Tokenizer
    least: int


def _named(names: Sequence[str], role: str) -> str:
    return next(name for name in names if name in NAMES[role])


def _specials(names: Sequence[str], space_before: bool = False) -> list[AddedToken]:
    """Special tokens; the unknown one is matched after normalisation, which may have written it for `<unk>`."""
    unk, mask = _named(names, "unk"), _named(names, "mask")
    return [
        AddedToken(name, special=True, normalized=name == unk, lstrip=space_before and name in (unk, mask))
        for name in names
    ]


def _train_words(learn: Learn) -> Learned:
    """Train on whitespace-separated words: the most frequent, the earlier first among equals."""
    names = tuple(_named(learn.special, role) for role in ("pad", "unk", "mask"))
    folding = _folding(learn)
    texts = map(normalizers.Sequence(folding).normalize_str, learn.sample) if folding else learn.sample
    counts = Counter(word for text in texts for word in text.split())
    words = [word for word, _ in counts.most_common() if word not in names]  # a stable sort: first seen first
    entries = [*names, *words][: max(learn.size, len(names) + 1)]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(entries)}, unk_token=names[1]))
    if folding:
        tokenizer.normalizer = folding[0] if len(folding) == 1 else normalizers.Sequence(folding)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return Learned(tokenizer, len(names) + 1)


def _train_wordpiece(learn: Learn) -> Learned:
    """Train with BERT's normaliser and pre-tokeniser, but keep joiners, and marks unless they are to go.

    A longer word than WordPiece reads (`LONGEST_WORD`) is cut, or it would be unknown as a whole.

    The trainer numbers the pieces ##c of one character in the order of a hash table, and breaks ties by number. Given
    as special tokens they are numbered by us, so that two trainings agree; `_train` takes that mark off again.
    """
    normalizer = normalizers.BertNormalizer(
        clean_text=False, strip_accents=learn.strip_accents, lowercase=learn.lowercase
    )
    cut = pre_tokenizers.Split(Regex(f".{{{LONGEST_WORD}}}"), "isolated")
    splitter = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), cut])
    folding = [normalizer, normalizers.NFC()] if learn.strip_accents else [normalizer]
    ranked, wanted, inside = _characters(learn.sample, normalizers.Sequence(folding), splitter, learn.size)
    room = learn.size - len(learn.special)

    def train(count: int) -> Learned:
        characters, inner = _fitting(ranked[:count], inside, room)
        tokenizer = Tokenizer(models.WordPiece(unk_token=_named(learn.special, "unk")))
        tokenizer.pre_tokenizer = splitter
        tokenizer.decoder = decoders.WordPiece(prefix="##")
        trainer = trainers.WordPieceTrainer(
            vocab_size=learn.size,
            min_frequency=2,
            special_tokens=[*_specials(learn.special), *("##" + character for character in inner)],
            initial_alphabet=characters,
            limit_alphabet=len(characters),
            show_progress=learn.show_progress,
        )
        trained = _train(tokenizer, folding, trainer, learn.sample, learn.special)
        return Learned(trained, len(learn.special) + len(characters) + len(inner))

    return _filled(train, wanted, len(ranked), learn.size)


def _characters(
    sample: list[str], normalizer: normalizers.Normalizer, splitter: pre_tokenizers.PreTokenizer, size: int
) -> tuple[list[str], int, set[str]]:
    """Return the characters, the most frequent first; how many are wanted; and those that occur inside a word."""
    words = Counter(word for text in sample for word in text.split())
    counts: Counter[str] = Counter()
    inner: set[str] = set()
    for word, count in words.items():
        for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(word)):
            inner.update(piece[1:])
            for character in piece:
                counts[character] += count
    return *_ranked(counts, size), inner


def _ranked(counts: Mapping[str, int], size: int) -> tuple[list[str], int]:
    """Return the characters, the most frequent first, and how many of them cover enough of the text."""
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    covered = np.cumsum([counts[character] for character in ranked])
    enough = int(np.searchsorted(covered, COVERED * covered[-1])) + 1 if ranked else 0
    wanted = min(max(enough, CHARACTERS), len(ranked))
    return ranked, len(ranked) if len(ranked) - wanted <= REST * size else wanted


def _fitting(ranked: list[str], inside: set[str], room: int) -> tuple[list[str], list[str]]:
    """Return those of the characters that there is room for, and those of them that occur inside a word, sorted."""
    characters, inner = [], []
    for character in ranked:
        need = 1 + (character in inside)
        if need <= room:
            room -= need
            characters.append(character)
            inner += [character] * (need - 1)
    return sorted(characters), sorted(inner)


def _filled(train: Callable[[int], Learned], wanted: int, available: int, size: int) -> Learned:
    """Train with the `wanted` most frequent characters, and with more of them where that leaves entries unused."""
    learned, before = train(wanted), 0
    while wanted < available and before < (reached := learned.tokenizer.get_vocab_size()) < size:
        wanted, before = min(available, wanted + size - reached), reached
        learned = train(wanted)
    return learned


def _train_bpe(learn: Learn) -> Learned:
    """Train byte-level pieces as GPT-2 and RoBERTa use them: no text is unknown."""
    least = 256 + len(learn.special)
    if learn.size < least:
        raise UserError(f"--tokenizer-size {learn.size}: byte-level bpe needs at least {least}")
    tokenizer = Tokenizer(models.BPE(unk_token=_named(learn.special, "unk")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=learn.size,
        min_frequency=2,
        special_tokens=_specials(learn.special, space_before=True),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=learn.show_progress,
    )
    normalizer = [normalizers.NFC(), *_folding(learn)]
    return Learned(_train(tokenizer, normalizer, trainer, _cut(learn.sample), learn.special), least)


def _train_unigram(learn: Learn) -> Learned:
    """Train SentencePiece's unigram model over words that carry the space before them."""
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    normalizer = [normalizers.NFC(), spaces, *_folding(learn)]
    normalize, counts = normalizers.Sequence(normalizer).normalize_str, Counter()
    for text in learn.sample:
        counts.update(normalize(text))
    counts.pop(" ", None)
    ranked, wanted = _ranked(counts, learn.size)
    # What carries the space is a character, too; and the library stops at the vocabulary's end only with one to spare.
    room = learn.size - len(learn.special) - 2

    def train(count: int) -> Learned:
        kept = min(count, room)
        rare = str.maketrans(dict.fromkeys(ranked[kept:], " "))
        sample = [normalize(text).translate(rare) for text in learn.sample] if rare else learn.sample
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=learn.size,
            special_tokens=_specials(learn.special, space_before=True),
            unk_token=_named(learn.special, "unk"),
            show_progress=learn.show_progress,
        )
        trained = _train(tokenizer, normalizer, trainer, _cut(sample), learn.special)
        return Learned(trained, len(learn.special) + 1 + kept)

    return _filled(train, wanted, min(len(ranked), room), learn.size)


def _folding(learn: Learn) -> list[normalizers.Normalizer]:
    """Return what makes letters alike that differ only in case, or in marks."""
    marks = [normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()] if learn.strip_accents else []
    return [*([normalizers.Lowercase()] if learn.lowercase else []), *marks]


def _cut(sample: Iterable[str]) -> Iterator[str]:
    """Yield the texts, those with words longer than `LONGEST_WORD` in parts: merges cost the length of a word."""
    for text in sample:
        if len(text) <= LONGEST_WORD or max(map(len, text.split()), default=0) <= LONGEST_WORD:
            yield text
        else:
            yield from PARTS.findall(text)


def _train(
    tokenizer: Tokenizer, normalizer: list, trainer: trainers.Trainer, sample: Iterable[str], special: Sequence[str]
) -> Tokenizer:
    """Train without, then add, what only matters later: the literal unknown token and the frame around a text."""
    tokenizer.normalizer = normalizers.Sequence(normalizer)
    tokenizer.train_from_iterator(_batches(sample), trainer)
    unk, cls, sep = (_named(special, role) for role in ("unk", "cls", "sep"))
    # Last, so that neither it nor the [UNK] it writes is lower-cased; a lower-cased [UNK] is mended on the way.
    unknown = normalizers.Replace(Regex(rf"{LITERAL_UNKNOWN}|\[unk\]"), unk)
    tokenizer.normalizer = normalizers.Sequence([*normalizer, unknown])
    frame = [(name, tokenizer.token_to_id(name)) for name in (cls, sep)]
    pair = f"{cls} $A {sep} {sep} $B {sep}" if cls == "<s>" else f"{cls} $A {sep} $B:1 {sep}:1"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{cls} $A {sep}", pair=pair, special_tokens=frame)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    if content["model"]["type"] == "Unigram":
        content["model"]["vocab"] = _settled(content["model"]["vocab"], len(special))
    # Added tokens are matched through the normaliser that was there when they were added: read everything anew.
    return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))


def _settled(pieces: list[list], specials: int) -> list[tuple[str, float]]:
    """Unigram's pieces in an order that no hash table decides.

    Its sums agree up to the last digits, and the characters that only complete the alphabet get the lowest scores, one
    a little below the other, at random.
    """
    frame, learned = pieces[:specials], pieces[specials:]
    ranked = sorted(((round(score, 6), piece) for piece, score in learned), key=lambda entry: (-entry[0], entry[1]))
    end = len(ranked)
    while end and len(ranked[end - 1][1]) == 1:
        end -= 1
    tail = sorted(piece for _, piece in ranked[end:])
    completed = [(piece, score) for piece, (score, _) in zip(tail, ranked[end:], strict=True)]
    return [*map(tuple, frame), *((piece, score) for score, piece in ranked[:end]), *completed]


def _batches(sample: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    texts = iter(sample)
    while batch := list(islice(texts, size)):
        yield batch


LEARNERS: Mapping[str, Callable[[Learn], Learned]] = {
    "wordpiece": _train_wordpiece,
    "bpe": _train_bpe,
    "unigram": _train_unigram,
    "word": _train_words,
}
"""By kind."""
