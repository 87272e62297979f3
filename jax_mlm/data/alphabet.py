"""Tokenizers of an alphabet that is given: a token a letter, as protein models read them. Nothing is learned."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

ESM = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
"""ESM-2's tokens in the order of their ids (Lin et al. 2023): 20 amino acids, rare and unclear ones, and gaps."""
SPECIAL = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")


def alphabet_tokenizer(tokens: Sequence[str] = ESM, special: Sequence[str] = SPECIAL) -> Tokenizer:
    """Return the tokenizer that finds these tokens wherever they stand; what lies between two of them is unknown.

    Args:
        tokens: in the order of their ids.
        special: those before and after a text and for padding, unknown text and masks, in the order of SPECIAL.
    """
    cls, _, eos, unk, _ = special
    tokenizer = Tokenizer(models.WordLevel({token: id for id, token in enumerate(tokens)}, unk_token=unk))
    letters = sorted({*tokens} - {*special, ""}, key=lambda token: (-len(token), token))
    # Escaped where both regex engines need it: the page's refuses an escape of anything else.
    pattern = Regex("|".join(re.sub(r"[.^$*+?()\[\]{}|\\/]", r"\\\g<0>", letter) for letter in letters))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(pattern, "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    frame = [(name, tokenizer.token_to_id(name)) for name in (cls, eos)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {eos}", pair=f"{cls} $A {eos} $B {eos}", special_tokens=frame
    )
    return tokenizer
