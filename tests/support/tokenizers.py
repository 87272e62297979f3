"""Small tokenizers of every kind that people have, made by hand: `MADE` has one function for each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlm_onnx.answer.reader import Reader
from mlm_onnx.bundle.layout import MANIFEST, TOKENIZER, Limits, Special
from mlm_onnx.bundle.read import Bundle
from mlm_onnx.bundle.write import seal
from tokenizers import (
    AddedToken,
    Encoding,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jax_mlm.data.tokenizer import vocabulary_of

CASES = json.loads((Path(__file__).parents[1] / "answer" / "tokenizers.json").read_text(encoding="utf-8"))
"""For each of `MADE`, with M for the mask: how queries are read (`reads`), how a piece is shown and filled in
(`pieces`), and which piece a target is after a character (`targets`)."""

BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
WORDS = ("the", "cat", "sat", "here", "and", "met", "def", "today")
LETTERS = "abcdefghijklmnopqrstuvwxyzTD(),.:"
HAN = "我爱你们在家"


def _ids(pieces: Iterable[str]) -> dict[str, int]:
    return {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}


def _merged(words: Iterable[str], letters: Iterable[str], last: str = "") -> tuple[list[str], list[tuple[str, str]]]:
    """Return the pieces and merges of a BPE that knows some words, put together from the left."""
    pieces, merges = list(letters), []
    for word in words:
        parts = [*word] if not last else [*word[:-1], word[-1] + last]
        whole = parts[0]
        for part in parts[1:]:
            merges.append((whole, part))
            whole += part
            pieces.append(whole)
    return pieces, list(dict.fromkeys(merges))


def _framed(tokenizer: Tokenizer, names: tuple[str, ...], strips: bool) -> Tokenizer:
    """Add the special tokens, a mask that takes the space before it or not, and the frame around a text."""
    cls, sep = (names[0], names[2]) if names[0] == "<s>" else (names[2], names[3])
    mask = names[-1]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names if name != mask])
    tokenizer.add_special_tokens([AddedToken(mask, special=True, normalized=False, lstrip=strips)])
    frame = [(name, tokenizer.token_to_id(name)) for name in (cls, sep)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{cls} $A {sep}", special_tokens=frame)
    return tokenizer


def wordpiece() -> Tokenizer:
    pieces = [*BERT, *WORDS, *LETTERS, *HAN, *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "##ing"]
    tokenizer = Tokenizer(models.WordPiece(_ids(pieces), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _framed(tokenizer, BERT, strips=False)


def byte_level(prefix: bool = False, strips: bool = True) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = _merged([*(f"Ġ{word}" for word in WORDS), "def", "the", "The", "ing"], alphabet)
    tokenizer = Tokenizer(models.BPE(_ids([*ROBERTA, *pieces]), merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    return _framed(tokenizer, ROBERTA, strips)


def unigram() -> Tokenizer:
    pieces = [(f"▁{word}", -2.0) for word in WORDS] + [("▁", -4.0), ("ing", -3.0)]
    pieces += [(letter, -6.0) for letter in (*LETTERS, *HAN)]
    tokenizer = Tokenizer(models.Unigram([*((name, 0.0) for name in ROBERTA), *pieces], unk_id=3))
    tokenizer.normalizer = normalizers.Replace(" {2,}", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _framed(tokenizer, ROBERTA, strips=True)


def metaspace_bpe() -> Tokenizer:
    pieces, merges = _merged((f"▁{word}" for word in WORDS), ["▁", *LETTERS, *HAN])
    tokenizer = Tokenizer(models.BPE(_ids([*ROBERTA, *pieces]), merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _framed(tokenizer, ROBERTA, strips=True)


def _fallback(prepend: bool) -> Tokenizer:
    """SentencePiece's BPE as it is written since Llama: the normaliser marks spaces, bytes stand for the unknown."""
    pieces, merges = _merged((f"▁{word}" for word in WORDS), ["▁", *LETTERS])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(_ids([*ROBERTA, *bytes_, *pieces]), merges, unk_token="<unk>", byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = spaces
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        tokenizer.decoder = decoders.Sequence(steps)
    return _framed(tokenizer, ROBERTA, strips=not prepend)


def end_of_word() -> Tokenizer:
    letters = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    pieces, merges = _merged(WORDS, letters, last="</w>")
    model = models.BPE(_ids([*ROBERTA, *pieces]), merges, unk_token="<unk>", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return _framed(tokenizer, ROBERTA, strips=False)


def characters(fused: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(_ids([*BERT, " ", *LETTERS, *HAN]), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if fused:
        tokenizer.decoder = decoders.Fuse()
    return _framed(tokenizer, BERT, strips=False)


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(_ids([*BERT, *WORDS]), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _framed(tokenizer, BERT, strips=False)


def with_added(tokenizer: Tokenizer, **options: bool) -> Tokenizer:
    """Add the word Deniz, as users did by hand or with --add-tokens."""
    tokenizer.add_tokens([AddedToken("Deniz", single_word=True, normalized=True, **options)])
    return tokenizer


MADE: Mapping[str, Callable[[], Tokenizer]] = {
    "wordpiece": wordpiece,
    "byte-level": byte_level,
    "byte-level with a prefix": lambda: byte_level(prefix=True),
    "byte-level whose mask leaves the space": lambda: byte_level(strips=False),
    "unigram": unigram,
    "bpe with ▁": metaspace_bpe,
    "gemma": lambda: _fallback(prepend=False),
    "llama": lambda: _fallback(prepend=True),
    "end of word": end_of_word,
    "characters": characters,
    "characters without a decoder": lambda: characters(fused=False),
    "words": words,
    "byte-level and an added word": lambda: with_added(byte_level(), lstrip=True),
    "byte-level and an added word of old": lambda: with_added(byte_level()),
    "unigram and an added word": lambda: with_added(unigram(), lstrip=True),
    "wordpiece and an added word": lambda: with_added(wordpiece()),
}


class Watched:
    """An encoding that counts how often each of its lists is copied, which the library does at every look at one."""

    def __init__(self, encoding: Encoding, copies: Counter[str]) -> None:
        self._encoding, self._copies = encoding, copies

    def __getattr__(self, name: str) -> Any:
        self._copies[name] += 1
        return getattr(self._encoding, name)


def bundle_of(tokenizer: Tokenizer, folder: Path, length: int = 64, **fields: object) -> Bundle:
    """Return a bundle with this tokenizer, these fields of the manifest, and no model."""
    tokenizer.save(str(folder / TOKENIZER))
    seal(folder, fields)
    vocabulary = vocabulary_of(tokenizer)
    special = Special(tokenizer.id_to_token(vocabulary.mask), vocabulary.mask, 0, vocabulary.special, vocabulary.unk)
    manifest = json.loads((folder / MANIFEST).read_text())
    return Bundle(folder, manifest, Limits(length, 5), special, tokenizer.get_vocab_size())


def reader_of(tokenizer: Tokenizer, folder: Path) -> Reader:
    """Return the reader of a bundle with this tokenizer and no model."""
    return Reader(bundle_of(tokenizer, folder))
