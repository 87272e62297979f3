"""The tokenizer files of a Hugging Face directory: tokenizer.json, or one rebuilt from the older files.

What the files say is done: the class of the tokenizer, its casing, the names of its special tokens, the frame around a
text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, normalizers

from jax_mlm.config import Json
from jax_mlm.data.tokenizer import check_ids, complete_decoder, has_mask, load_tokenizer, mask_of, rust, with_mask
from jax_mlm.errors import UserError
from jax_mlm.hf.older import KINDS, add_tokens, rebuilt
from jax_mlm.hf.tokenizer_files import CONFIG, REMEDY, ROLES, SPECIAL_TOKENS, Source, read_json, read_text


def hf_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer alone of what `read_tokenizer` reads."""
    return read_tokenizer(folder)[0]


def read_tokenizer(folder: Path) -> tuple[Tokenizer, list[str]]:
    """Return the tokenizer of a directory, special tokens marked as such, and remarks on what its files leave open.

    It has no truncation or padding of its own.

    Raises:
        UserError: none of the known files, a broken one, a class that they cannot be read for, or no mask token.
    """
    options: Json = {}
    for name in (SPECIAL_TOKENS, CONFIG):
        if (folder / name).is_file():
            options |= read_json(folder / name)
    source = Source(folder, options)
    if (folder / "tokenizer.json").is_file():
        tokenizer = _parsed(folder / "tokenizer.json")
        _recase(tokenizer, source)
        add_tokens(tokenizer, source)
    else:
        tokenizer = rebuilt(source)
    return _with_specials(tokenizer, source), source.remarks


def hf_tokenizer_config(special: Mapping[str, str | None], max_length: int, token_types: int | None = None) -> Json:
    """tokenizer_config.json; `special` maps pad, mask, unk, cls, sep to the token's text."""
    named: Json = {f"{role}_token": text for role, text in special.items() if text is not None}
    if token_types is not None:  # transformers' default has changed: only a model with two of them reads token types
        types = ["token_type_ids"] if token_types > 1 else []
        named["model_input_names"] = ["input_ids", *types, "attention_mask"]
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **named}


def _with_specials(tokenizer: Tokenizer, source: Source) -> Tokenizer:
    """Mark the special tokens that only the other files name; a mask that is not in the vocabulary yet follows it.

    A tokenizer.json keeps no roles, so a mask of another name gets a usual one.

    Raises:
        UserError: there is no mask, or another token has a mask's name; or ids that cannot be used.
    """
    marked = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    mask = source.token("mask")
    for token in (*map(source.token, ROLES), *source.further()):
        if token is None or token.content in marked:
            continue
        if tokenizer.token_to_id(token.content) is not None or (mask and token.content == mask.content):
            tokenizer.add_special_tokens([token])
    try:
        check_ids(tokenizer)
        if mask is not None and not has_mask(tokenizer):
            tokenizer = with_mask(tokenizer, mask.content)
            written = tokenizer.id_to_token(mask_of(tokenizer))
            source.remarks.append(f"its mask {mask.content} is written {written} from here on")
            return tokenizer
        found = tokenizer.id_to_token(mask_of(tokenizer))
    except UserError as error:
        raise UserError(f"the tokenizer of {source.folder}: {error}: {REMEDY}") from None
    if mask is not None and mask.content != found:
        raise UserError(f"{source.folder}: mask_token is {mask.content!r}, but {found!r} has the name of one: {REMEDY}")
    return tokenizer


def _parsed(path: Path) -> Tokenizer:
    """Parse a tokenizer.json that may still lack the marks of its special tokens."""
    text = read_text(path)
    try:
        tokenizer = rust(Tokenizer.from_str, text)
    except UserError:  # load_tokenizer has the words for it
        return load_tokenizer(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        check_ids(tokenizer)
    except UserError as error:
        raise UserError(f"{path}: {error}: {REMEDY}") from None
    complete_decoder(tokenizer)
    return tokenizer


def _recase(tokenizer: Tokenizer, source: Source) -> None:
    """Let the options of a BERT class overrule the normalizer in tokenizer.json, as transformers does."""
    before = tokenizer.normalizer
    named = str(source.options.get("tokenizer_class")).removesuffix("Fast")
    if not isinstance(before, normalizers.BertNormalizer) or named not in KINDS[0].classes:
        return
    lowercase = source.flag("do_lower_case", before.lowercase)
    accents = source.flag("strip_accents", before.strip_accents)
    chinese = source.flag("tokenize_chinese_chars", before.handle_chinese_chars)
    if (lowercase, accents, chinese) != (before.lowercase, before.strip_accents, before.handle_chinese_chars):
        tokenizer.normalizer = normalizers.BertNormalizer(before.clean_text, bool(chinese), accents, bool(lowercase))
        source.remarks.append(
            f"{CONFIG} and tokenizer.json differ in casing: the first is followed, as transformers does"
        )
