"""The tokenizer files of a Hugging Face directory: tokenizer.json, or one built from the older files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jax_mlm.config import Json
from jax_mlm.data.tokenizer import load_tokenizer
from jax_mlm.errors import UserError

ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


def read_json(path: Path) -> Json:
    """Return the object in a JSON file; raise a UserError where it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value


def hf_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer of a directory, special tokens marked as such, without truncation or padding.

    Raises:
        UserError: none of the known files, or a broken one, or a tokenizer without a mask token.
    """
    options: Json = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            options |= read_json(folder / name)
    if (folder / "tokenizer.json").is_file():
        tokenizer = _parsed(folder / "tokenizer.json")
    elif (folder / "vocab.txt").is_file():
        tokenizer = _wordpiece(folder / "vocab.txt", options)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        tokenizer = _byte_level(folder, options)
    elif (folder / "spiece.model").is_file():
        tokenizer = _sentencepiece(folder / "spiece.model", options)
    else:
        raise UserError(
            f"{folder} holds no tokenizer (tokenizer.json, vocab.txt, vocab.json with merges.txt, or spiece.model): "
            "python -m jax_mlm.hf import takes one with --tokenizer FILE"
        )
    _add_specials(tokenizer, folder, options)
    return tokenizer


def hf_tokenizer_config(special: Mapping[str, str | None], max_length: int, token_types: int | None = None) -> Json:
    """tokenizer_config.json; `special` maps pad, mask, unk, cls, sep to the token's text."""
    named: Json = {f"{role}_token": text for role, text in special.items() if text is not None}
    if token_types is not None and token_types < 2:  # a pair of texts would ask for a second type
        named["model_input_names"] = ["input_ids", "attention_mask"]
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **named}


def _parsed(path: Path) -> Tokenizer:
    """Parse a tokenizer.json that may still lack the marks of its special tokens."""
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception:  # the Rust library raises nothing narrower; load_tokenizer has the words for it
        return load_tokenizer(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _text(option: object) -> str | None:
    """Return the text of a token in tokenizer_config.json: plain, or an object with its marks."""
    if isinstance(option, dict):
        option = option.get("content")
    return option if isinstance(option, str) else None


def _add_specials(tokenizer: Tokenizer, folder: Path, options: Json) -> None:
    """Mark the special tokens that only the other files name, and add those of added_tokens.json."""
    added = folder / "added_tokens.json"
    if added.is_file():
        for text, id in sorted(read_json(added).items(), key=lambda item: item[1]):
            tokenizer.add_tokens([AddedToken(text, normalized=False)])
            if tokenizer.token_to_id(text) != id:
                raise UserError(
                    f"{added}: {text!r} should have id {id}, its position gives {tokenizer.token_to_id(text)}"
                )
    marked = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    for role in ROLES:
        text = _text(options.get(f"{role}_token"))
        if text is not None and text not in marked and tokenizer.token_to_id(text) is not None:
            before = role == "mask" and isinstance(options["mask_token"], dict) and options["mask_token"].get("lstrip")
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False, lstrip=bool(before))])


def _frame(tokenizer: Tokenizer, cls: str, sep: str) -> None:
    """CLS text SEP, and CLS text SEP text SEP, for the tokens that are there."""
    ids = [(token, tokenizer.token_to_id(token)) for token in (cls, sep)]
    if all(id is not None for _, id in ids):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}", pair=f"{cls} $A {sep} $B:1 {sep}:1", special_tokens=ids
        )


def _specials(tokenizer: Tokenizer, names: tuple[str, ...], **mask: bool) -> None:
    present = [name for name in names if tokenizer.token_to_id(name) is not None]
    for name in present:
        marks = mask if name == names[-1] else {}
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False, **marks)])


def _wordpiece(path: Path, options: Json) -> Tokenizer:
    """BERT's: one piece a line."""
    lines = path.read_text(encoding="utf-8").split("\n")
    entries = lines[:-1] if lines and not lines[-1] else lines
    vocab = {entry.rstrip("\r"): id for id, entry in enumerate(entries)}
    unk = _text(options.get("unk_token")) or "[UNK]"
    if unk not in vocab:
        raise UserError(f"{path} has no {unk}: it is no WordPiece vocabulary")
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(options.get("do_lower_case", True)),
        strip_accents=options.get("strip_accents"),
        handle_chinese_chars=bool(options.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    _specials(tokenizer, ("[PAD]", unk, "[CLS]", "[SEP]", "[MASK]"))
    _frame(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def _byte_level(folder: Path, options: Json) -> Tokenizer:
    """Build the byte-level tokenizer of GPT-2 and RoBERTa from its pieces and merges."""
    vocab = read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    try:
        tokenizer = Tokenizer(models.BPE(vocab, [(left, right) for left, right in merges]))
    except Exception as error:  # the Rust library raises nothing narrower
        raise UserError(f"{folder}: vocab.json and merges.txt do not fit together ({error})") from None
    space = bool(options.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    _specials(tokenizer, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), lstrip=True)
    cls, sep = (tokenizer.token_to_id(name) for name in ("<s>", "</s>"))
    if cls is not None and sep is not None:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", sep), ("<s>", cls), add_prefix_space=space)
    return tokenizer


# ---- SentencePiece -------------------------------------------------------------------------------

UNIGRAM, UNKNOWN = 1, 2


def _sentencepiece(path: Path, options: Json) -> Tokenizer:
    """ALBERT's: a SentencePiece Unigram model, with the normalisation of `transformers`' AlbertTokenizer."""
    try:
        pieces, kind, charsmap = _model_proto(path.read_bytes())
    except (IndexError, ValueError, struct.error, UnicodeDecodeError):
        raise UserError(f"{path} is truncated or no SentencePiece model: fetch it again") from None
    if kind != UNIGRAM or not pieces:
        raise UserError(f"{path} is no Unigram model: only those (ALBERT's) can be read; give a tokenizer.json")
    unk = next((id for id, (_, _, type) in enumerate(pieces) if type == UNKNOWN), None)
    tokenizer = Tokenizer(models.Unigram([(text, score) for text, score, _ in pieces], unk, byte_fallback=False))
    steps: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not options.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if options.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    _specials(tokenizer, ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), lstrip=True)
    _frame(tokenizer, "[CLS]", "[SEP]")
    return tokenizer


def _model_proto(data: bytes) -> tuple[list[tuple[str, float, int]], int, bytes]:
    """(text, score, type) of each piece, the kind of model, and the table of its normaliser.

    The fields are those of sentencepiece_model.proto: pieces 1 (piece 1, score 2, type 3), trainer_spec 2 (model_type
    3), normalizer_spec 3 (precompiled_charsmap 2).
    """
    pieces, kind, charsmap = [], UNIGRAM, b""
    for number, value in _message(data):
        if number == 1:
            piece = dict(_message(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append((piece.get(1, b"").decode(), score, piece.get(3, 1)))
        elif number == 2:
            kind = dict(_message(value)).get(3, UNIGRAM)
        elif number == 3:
            charsmap = dict(_message(value)).get(2, b"")
    return pieces, kind, charsmap


def _message(data: bytes) -> Iterator[tuple[int, Any]]:  # an integer or bytes: who reads a field knows which
    """(field number, value) of a protocol buffer message: integers or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or (varint() if key & 7 == 2 else -1)
        if size < 0 or at + size > len(data):
            raise ValueError("not a message")
        yield key >> 3, data[at : at + size]
        at += size
