"""What tests of Hugging Face directories share."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.presets import SENTENCE


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The words of the founding sentence; the mask has the id 2."""
    return train_tokenizer([SENTENCE], "word", 16)
