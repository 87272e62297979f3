"""Trains or loads one tokenizer.json: word-level, WordPiece, byte-level BPE or Unigram."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jax_mlm.errors import UserError

Kind = Literal["wordpiece", "bpe", "unigram", "word", "protein"]
SpecialNames = Literal["bert", "roberta"]
SPECIAL: Mapping[str, tuple[str, ...]] = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
}
"""The special tokens of a new tokenizer, in the order of their ids: RoBERTa's positions count from its padding's."""
SAMPLE = 1 << 27
"""Characters that a tokenizer learns from: more changes the vocabulary little, and memory stays bounded."""
SAMPLE_UNIGRAM = 1 << 24
"""The same for Unigram, whose training is far slower than that of merges."""
LITERAL_UNKNOWN = "<unk>"
"""What WikiText and its kin write for a word outside their own vocabulary."""
NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
    "unk": ("[UNK]", "<unk>", "<|unk|>"),
    "cls": ("[CLS]", "<s>", "<cls>", "[BOS]", "<bos>"),
    "sep": ("[SEP]", "</s>", "<sep>", "[EOS]", "<eos>"),
}
LETTERS = {
    "pad": ("pad", "padding"),
    "mask": ("mask",),
    "unk": ("unk", "unknown"),
    "cls": ("cls", "bos"),
    "sep": ("sep", "eos"),
}
"""The letters of special tokens that have one of those names in another spelling, such as <MASK>."""
RESERVED = re.compile(
    r"[\[<]\|?(unused|reserved|extra_?id|null|dummy|placeholder)[a-z_ -]*\d+\|?[\]>]|madeupword\d+|<.+>NOTUSED", re.I
)
"""Pieces kept free in a published vocabulary, such as [unused12], <unused3> or madeupword0000: no text holds them."""


@dataclass(frozen=True)
class Vocabulary:
    """What masking, packing and the model need to know of a tokenizer."""

    size: int
    """Number of ids: the largest one + 1."""
    pad: int
    mask: int
    unk: int | None
    cls: int | None
    """Put before every text by the tokenizer; None where it puts nothing there."""
    sep: int | None
    """Put after every text."""
    special: tuple[int, ...]
    """Every special or reserved id, sorted: never masked, never drawn at random, never a target or an answer."""


class VocabularyTooLarge(UserError):
    """The text does not hold as many different pieces as were asked for; `reachable` of them it does."""

    def __init__(self, asked: int, reachable: int) -> None:
        self.reachable = reachable
        most = f"{reachable} entries at most" if reachable else "fewer than 64 entries"
        remedy = f"choose --tokenizer-size {reachable} or less, or give" if reachable else "give"
        super().__init__(f"--tokenizer-size {asked}: the data supports {most}; {remedy} more text")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, with no truncation or padding of its own.

    Raises:
        UserError: the file is missing, is not a tokenizer, or has no mask token.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"--tokenizer {path} is a folder: give the tokenizer.json in it")
    if not path.is_file():
        raise UserError(f"--tokenizer {path}: no such file")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the Rust library raises nothing narrower
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--tokenizer {path} is not a tokenizer.json ({reason})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        mask_of(tokenizer)
    except UserError as error:
        raise UserError(f"--tokenizer {path}: {error}") from error
    return tokenizer


def size_of(tokenizer: Tokenizer) -> int:
    """Return the number of ids: the largest one + 1."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def mask_of(tokenizer: Tokenizer) -> int:
    """Return the id of the mask token; a UserError where there is none."""
    mask = _find_special("mask", _special(tokenizer))
    if mask is None:
        raise UserError("it has no special token [MASK] or <mask>, which a masked language model needs")
    return mask


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    return {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def _find(role: str, tokens: Mapping[str, int]) -> int | None:
    return next((tokens[name] for name in NAMES[role] if name in tokens), None)


def _find_special(role: str, special: Mapping[str, int]) -> int | None:
    """Return the id of a role among special tokens, by its usual name or by the letters of another one."""
    spelled = {"".join(re.findall("[a-z]+", name.lower())): id for name, id in reversed([*special.items()])}
    found = _find(role, special)
    return next((spelled[word] for word in LETTERS[role] if word in spelled), None) if found is None else found


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Find the special tokens by their names; the framing ones only where the tokenizer really adds them.

    It encodes a text to see that: call it once, and pass the result on.
    """
    special, mask = _special(tokenizer), mask_of(tokenizer)
    frame = tokenizer.encode("").ids
    cls, sep = (id if id in frame else None for id in (_find_special("cls", special), _find_special("sep", special)))
    if len(frame) == 2 and {*frame} <= {*special.values()}:  # whatever their names
        cls, sep = frame
    every_piece = tokenizer.get_vocab(with_added_tokens=True)
    unk = _find_special("unk", special)
    if unk is None:
        unk = _find("unk", every_piece)
    pad = _find_special("pad", special)
    if pad is None:  # padding is never attended to, so any special token can fill it
        pad = next(id for id in (sep, cls, mask) if id is not None)
    reserved = (id for piece, id in every_piece.items() if RESERVED.fullmatch(piece))
    every = {*special.values(), *reserved, *(() if unk is None else (unk,))}
    return Vocabulary(size_of(tokenizer), pad, mask, unk, cls, sep, tuple(sorted(every)))


def padded_size(size: int, kind: str) -> int:
    """Return the rows of the embedding table: a multiple of 64, except for words and proteins, where it is exact."""
    return size if kind in ("word", "protein") else -(-size // 64) * 64


def train_tokenizer(
    texts: Iterable[str], kind: Kind, size: int, lowercase: bool = False, special: SpecialNames = "bert"
) -> Tokenizer:
    """Learn a vocabulary of exactly `padded_size(size, kind)` entries; the same texts give the same tokenizer."""
    size = padded_size(size, kind)
    learn: Callable[..., Tokenizer] = {
        "word": _train_words,
        "wordpiece": _train_wordpiece,
        "bpe": _train_bpe,
        "unigram": _train_unigram,
    }[kind]
    sample = evenly(map(_without_unknown, texts), SAMPLE_UNIGRAM if kind == "unigram" else SAMPLE)
    if not any(text.strip() for text in sample):
        raise UserError("--data holds no text to train a tokenizer on")
    tokenizer = learn(sample, size, lowercase, SPECIAL[special])
    reached = tokenizer.get_vocab_size(with_added_tokens=True)
    if reached < size:
        raise VocabularyTooLarge(size, reached if kind == "word" else reached // 64 * 64)
    if reached > size:
        raise UserError(f"--tokenizer-size {size} is too small for {kind} on this data: give at least {reached}")
    return tokenizer


def evenly(texts: Iterable[str], limit: int) -> list[str]:
    """Return every k-th text, k the smallest power of two that keeps them within `limit` characters (or one text)."""
    kept: list[str] = []
    every, total = 1, 0
    for i, text in enumerate(texts):
        if i % every:
            continue
        kept.append(text)
        total += len(text)
        while total > limit and len(kept) > 1:
            every *= 2
            kept = kept[::2]
            total = sum(map(len, kept))
    return kept


def _without_unknown(text: str) -> str:
    return text.replace(f" {LITERAL_UNKNOWN}", "").replace(LITERAL_UNKNOWN, "") if LITERAL_UNKNOWN in text else text


def _named(names: Sequence[str], role: str) -> str:
    return next(name for name in names if name in NAMES[role])


def _specials(names: Sequence[str], space_before: bool = False) -> list[AddedToken]:
    """Special tokens; the unknown one is matched after normalisation, which may have written it for `<unk>`."""
    unk, mask = _named(names, "unk"), _named(names, "mask")
    return [
        AddedToken(name, special=True, normalized=name == unk, lstrip=space_before and name in (unk, mask))
        for name in names
    ]


def _train_words(sample: list[str], size: int, lowercase: bool, special: Sequence[str]) -> Tokenizer:
    """Train on whitespace-separated words: the most frequent, the earlier first among equals."""
    names = tuple(_named(special, role) for role in ("pad", "unk", "mask"))
    counts = Counter(word for text in sample for word in (text.lower() if lowercase else text).split())
    words = [word for word, _ in counts.most_common() if word not in names]  # a stable sort: first seen first
    entries = [*names, *words][: max(size, len(names) + 1)]
    tokenizer = Tokenizer(models.WordLevel({word: id for id, word in enumerate(entries)}, unk_token=names[1]))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def _train_wordpiece(sample: list[str], size: int, lowercase: bool, special: Sequence[str]) -> Tokenizer:
    """BERT's normaliser and pre-tokeniser.

    The trainer numbers the pieces ##c of one character in the order of a hash table, and breaks ties by number. Given
    as special tokens they are numbered by us, so that two trainings agree; `_train` takes that mark off again.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token=_named(special, "unk")))
    normalizer = normalizers.BertNormalizer(strip_accents=lowercase, lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    characters, inner = _characters(sample, normalizer, tokenizer.pre_tokenizer, min(1000, (size - len(special)) // 2))
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[*_specials(special), *("##" + character for character in inner)],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    return _train(tokenizer, [normalizer], trainer, sample, special)


def _characters(
    sample: list[str], normalizer: normalizers.Normalizer, splitter: pre_tokenizers.PreTokenizer, limit: int
) -> tuple[list[str], list[str]]:
    """Return the `limit` most frequent characters, sorted, and those of them that occur inside a word."""
    words = Counter(word for text in sample for word in text.split())
    counts: Counter[str] = Counter()
    inner: set[str] = set()
    for word, count in words.items():
        for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(word)):
            inner.update(piece[1:])
            for character in piece:
                counts[character] += count
    kept = sorted(sorted(counts, key=lambda character: (-counts[character], character))[:limit])
    return kept, [character for character in kept if character in inner]


def _train_bpe(sample: list[str], size: int, lowercase: bool, special: Sequence[str]) -> Tokenizer:
    """Train byte-level pieces as GPT-2 and RoBERTa use them: no text is unknown."""
    smallest = padded_size(256 + len(special), "bpe")
    if size < smallest:
        raise UserError(f"--tokenizer-size {size}: byte-level bpe needs at least {smallest}")
    tokenizer = Tokenizer(models.BPE(unk_token=_named(special, "unk")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=_specials(special, space_before=True),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _train(tokenizer, [normalizers.NFC(), *_lower(lowercase)], trainer, sample, special)


def _train_unigram(sample: list[str], size: int, lowercase: bool, special: Sequence[str]) -> Tokenizer:
    """Train SentencePiece's unigram model over words that carry the space before them."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=_specials(special, space_before=True),
        unk_token=_named(special, "unk"),
        show_progress=False,
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    return _train(tokenizer, [normalizers.NFKC(), spaces, *_lower(lowercase)], trainer, sample, special)


def _lower(lowercase: bool) -> list[normalizers.Normalizer]:
    return [normalizers.Lowercase()] if lowercase else []


def _train(
    tokenizer: Tokenizer, normalizer: list, trainer: trainers.Trainer, sample: list[str], special: Sequence[str]
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


def _batches(sample: list[str], size: int = 1000) -> Iterator[list[str]]:
    for i in range(0, len(sample), size):
        yield sample[i : i + size]
