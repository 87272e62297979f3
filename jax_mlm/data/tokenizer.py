"""Trains or loads one tokenizer.json, and what the rest of the code has to know of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from tokenizers import Tokenizer, decoders

from jax_mlm.config import SIZES, Json
from jax_mlm.data.learning import LEARNERS, LITERAL_UNKNOWN, NAMES, Learn
from jax_mlm.errors import UserError, first_line, shown

Result = TypeVar("Result")
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
DISTINCT, DISTINCT_UNIGRAM = 1 << 23, 1 << 20
"""Characters of the different words that a tokenizer learns from: text without spaces is thinned out to it."""


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
        self.asked, self.reachable = asked, reachable
        super().__init__(
            f"--tokenizer-size {asked}: the data supports {reachable} entries at most; "
            f"choose --tokenizer-size {reachable}, or give more text"
        )


def rust(
    function: Callable[..., Result], *arguments: object, where: str = "the tokenizer fails", **options: object
) -> Result:
    """Call the tokenizers library, whose errors and panics share no base class narrower than BaseException."""
    try:
        return function(*arguments, **options)
    except (KeyboardInterrupt, SystemExit, MemoryError, UserError):
        raise
    except BaseException as error:
        raise UserError(f"{where} ({first_line(error)})") from None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, with no truncation or padding of its own.

    Raises:
        UserError: the file is missing, is not a tokenizer, has no mask token or ids that cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"--tokenizer {path} is a folder: give the tokenizer.json in it")
    if not path.is_file():
        raise UserError(f"--tokenizer {path}: no such file")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--tokenizer {path} is not a tokenizer.json ({error})") from error
    tokenizer = rust(Tokenizer.from_str, content, where=f"--tokenizer {path} is not a tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        check_ids(tokenizer)  # first: to write a tokenizer takes time that grows with its largest id
        complete_decoder(tokenizer)
        mask_of(tokenizer)
    except UserError as error:
        raise UserError(f"--tokenizer {path}: {error}") from error
    return tokenizer


def check_ids(tokenizer: Tokenizer) -> None:
    """Raise a UserError where two tokens have one id, or an id is beyond the rows of a table."""
    by_id: dict[int, str] = {}
    for token, id in tokenizer.get_vocab(with_added_tokens=True).items():
        if id in by_id:
            raise UserError(f"the tokens {shown(by_id[id])} and {shown(token)} have one id, {id}: give each its own")
        by_id[id] = token
    frame = rust(tokenizer.encode, "").ids
    if (largest := max((*by_id, *frame), default=0)) >= SIZES["vocab_size"][1]:
        raise UserError(f"the id {largest} is too large for a vocabulary: number the tokens from 0")
    if unknown := sorted({*frame} - by_id.keys()):
        raise UserError(f"its frame around a text has the id {unknown[0]}, which is none of its tokens'")


def complete_decoder(tokenizer: Tokenizer) -> None:
    """Give a tokenizer without a decoder the one that undoes the marks its pieces carry, if they carry any."""
    if tokenizer.decoder is not None:
        return
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    steps = {step["type"]: step for part in ("normalizer", "pre_tokenizer") for step in _steps(content[part])}
    if suffix := model.get("end_of_word_suffix"):
        tokenizer.decoder = decoders.BPEDecoder(suffix)
    elif prefix := model.get("continuing_subword_prefix"):
        tokenizer.decoder = decoders.WordPiece(prefix)
    elif "ByteLevel" in steps:
        tokenizer.decoder = decoders.ByteLevel()
    elif "Metaspace" in steps:
        space = steps["Metaspace"]
        tokenizer.decoder = decoders.Metaspace(space["replacement"], space.get("prepend_scheme", "always"))
    elif steps.get("Replace", {}).get("pattern") == {"String": " "}:
        mark = steps["Replace"]["content"]
        undone = [decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*undone, *([decoders.Strip(" ", 1, 0)] if "Prepend" in steps else [])])


def _steps(part: Json | None) -> list[Json]:
    """Return the steps of a normalizer or pre-tokenizer, however deep they are nested."""
    if part is None:
        return []
    inner = part.get("normalizers") or part.get("pretokenizers")
    return [part] if inner is None else [step for each in inner for step in _steps(each)]


def size_of(tokenizer: Tokenizer) -> int:
    """Return the number of ids: the largest one + 1."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def mask_of(tokenizer: Tokenizer) -> int:
    """Return the id of the mask token; a UserError where there is none."""
    mask = _find_special("mask", _special(tokenizer))
    if mask is None:
        raise UserError("it has no special token [MASK] or <mask>, which a masked language model needs")
    return mask


def has_mask(tokenizer: Tokenizer) -> bool:
    """Return whether a special token has the name of a mask."""
    return _find_special("mask", _special(tokenizer)) is not None


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
    frame = rust(tokenizer.encode, "").ids
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


def as_text(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that reads the names of special tokens in a text as ordinary text, as data asks for.

    The unknown token stays what it is: a text writes it for a word that it leaves out. In the copy the others have
    names that no text holds, and the same ids.
    """
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    unknown = {*NAMES["unk"], model.get("unk_token")}
    if model["type"] == "Unigram" and model["unk_id"] is not None:
        unknown.add(model["vocab"][model["unk_id"]][0])
    names = {token["content"] for token in content["added_tokens"] if token["special"]} - unknown
    return _renamed(content, {name: f"\uffff{name}" for name in names})


def with_mask(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """Return a copy in which the special token `name` has a mask's usual name, by which it is found, and its old id."""
    known = tokenizer.get_vocab(with_added_tokens=True)
    free = [usual for usual in NAMES["mask"] if usual not in known]
    if not free:
        raise UserError(f"its mask {shown(name)} needs one of the names {', '.join(NAMES['mask'])}, but all are taken")
    angles = any(each in known for role in ("cls", "sep", "pad") for each in NAMES[role] if each[0] == "<")
    free.sort(key=lambda usual: (usual[0] == "<") != angles)
    return _renamed(json.loads(tokenizer.to_str()), {name: free[0]})


def _renamed(content: Json, new: Mapping[str, str]) -> Tokenizer:
    """Return a tokenizer in which tokens have other names; no merge makes them any more."""
    model = content["model"]
    for token in content["added_tokens"]:
        token["content"] = new.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new.get(piece, piece): id for piece, id in model["vocab"].items()}
    else:
        model["vocab"] = [[new.get(piece, piece), score] for piece, score in model["vocab"]]
    if "merges" in model:
        pairs = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
        model["merges"] = [pair for pair in pairs if new.keys().isdisjoint((*pair, "".join(pair)))]
    return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))


def padded_size(size: int, kind: str) -> int:
    """Return the rows of the embedding table: a multiple of 64, except for words and proteins, where it is exact."""
    return size if kind in ("word", "protein") else -(-size // 64) * 64


def train_tokenizer(
    texts: Iterable[str],
    kind: Kind,
    size: int,
    lowercase: bool = False,
    special: SpecialNames = "bert",
    strip_accents: bool = False,
    show_progress: bool = False,
) -> Tokenizer:
    """Learn a vocabulary of `size` entries, rounded up by `padded_size` where the text supports it.

    The same texts give the same tokenizer. Time and memory are bounded, however much text there is and however long
    its words are.

    Raises:
        VocabularyTooLarge: the text supports fewer entries.
        UserError: there is no text, or the size leaves no room for what the kind needs.
    """
    most, distinct = (SAMPLE_UNIGRAM, DISTINCT_UNIGRAM) if kind == "unigram" else (SAMPLE, DISTINCT)
    sample = _bounded(evenly(map(without_unknown, texts), most), distinct)
    if not any(text.strip() for text in sample):
        raise UserError("--data holds no text to train a tokenizer on")
    learn = Learn(sample, padded_size(size, kind), lowercase, strip_accents, SPECIAL[special], show_progress)
    tokenizer, least = LEARNERS[kind](learn)
    reached = tokenizer.get_vocab_size(with_added_tokens=True)
    if reached > learn.size:
        raise UserError(f"--tokenizer-size {size} is too small for {kind} on this data: give at least {reached}")
    if reached < size:
        rounded = reached if kind == "word" else reached // 64 * 64
        raise VocabularyTooLarge(size, rounded if rounded >= least else reached)
    return tokenizer


def _bounded(sample: list[str], distinct: int) -> list[str]:
    """Thin the sample out until its different words fit: merges cost their characters, and each takes 32 bytes."""
    while len(sample) > 1:
        words: set[str] = set()
        for text in sample:
            words.update(text.split())
        if sum(map(len, words)) <= distinct:
            break
        sample = sample[::2]
    return sample


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


def without_unknown(text: str) -> str:
    """Return the text without the words that it gives as unknown: nothing is learned from them."""
    return text.replace(f" {LITERAL_UNKNOWN}", "").replace(LITERAL_UNKNOWN, "") if LITERAL_UNKNOWN in text else text
