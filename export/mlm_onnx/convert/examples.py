"""A bundle's example sentences: the user's own, the memorised one, or plain ones that the model can read."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from jax_mlm.data.tokenizer import Vocabulary
from mlm_onnx.bundle.layout import EXAMPLE_CHARACTERS, EXAMPLES, BundleError

PLAIN = (
    "The children walked to the old house by the river in the evening.",
    "She opened the door and saw that the room was empty.",
    "The first train of the day leaves the city before the sun comes up.",
    "He wrote a long letter to his mother about the war.",
)
"""None of a run's training text is used: a bundle is passed on, and that text may not be meant to be."""
PIECES_A_WORD = 1.5
"""A vocabulary that splits plain words into more pieces was made for something else."""


def examples_for(
    tokenizer: Tokenizer, vocabulary: Vocabulary, given: Sequence[str] = (), memorised: str | None = None
) -> list[str]:
    """Return the examples for the manifest; none if the user gave none and the vocabulary cannot read plain English.

    Raises:
        BundleError: the user's examples are too many, too long or empty.
    """
    for text in given:
        if not text.strip() or len(text) > EXAMPLE_CHARACTERS:
            raise BundleError(f"--example {text[:40]!r} must have 1 to {EXAMPLE_CHARACTERS} characters")
    if len(given) > EXAMPLES:
        raise BundleError(f"--example is given {len(given)} times; a bundle offers up to {EXAMPLES}")
    if given:
        return list(given)
    return [memorised] if memorised else [text for text in PLAIN if _readable(tokenizer, vocabulary, text)]


def _readable(tokenizer: Tokenizer, vocabulary: Vocabulary, text: str) -> bool:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return vocabulary.unk not in ids and len(ids) <= PIECES_A_WORD * len(text.split())
