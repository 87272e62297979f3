"""The alphabet of proteins: a token a letter, nothing learned, nothing to choose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jax_mlm.data.alphabet import ESM, alphabet_tokenizer
from jax_mlm.data.dataset import open_dataset
from jax_mlm.data.encoding import encode
from jax_mlm.errors import UserError
from jax_mlm.presets import PRESETS

PRESET = replace(PRESETS["esm2-t6-8m"], data=("p.txt",))


def test_every_letter_is_a_token_of_one_character() -> None:
    text = "MKTAYIAKQR QISFVKSHFSRQ.-BZUOX"
    encoding = alphabet_tokenizer().encode(text)
    spans = encoding.offsets[1:-1]
    assert "".join(text[start:end] for start, end in spans) == text.replace(" ", "")
    assert all(end - start == 1 for start, end in spans)
    assert encode(alphabet_tokenizer(), [text]).begins.sum() == 5, "three words of letters and two gaps"


@pytest.mark.parametrize("odd", ["a.b", "(x)", "[y]", "a|b", "^", "$", "\\", "/", "+*?"])
def test_letters_of_other_alphabets_may_be_marks(odd: str) -> None:
    special = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")
    tokens = alphabet_tokenizer((*special, odd, "A"), special).encode(f"A{odd}A").tokens
    assert tokens == ["<cls>", "A", odd, "A", "<eos>"]


def test_training_takes_the_alphabet_and_its_mask(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("MKTAYIAKQR\n" * 400)
    corpus = replace(PRESET.corpus, cache=str(tmp_path / "cache"))
    config = replace(PRESET, data=(str(tmp_path / "p.txt"),), corpus=corpus)
    made = open_dataset(config, tmp_path / "run", lambda text: None)
    assert (made.config.model.vocab_size, made.config.model.mask_id) == (33, ESM.index("<mask>"))
    with pytest.raises(UserError, match="--mask-id 5 is not the tokenizer's mask, 32"):
        open_dataset(replace(config, model=replace(config.model, mask_id=5)), tmp_path / "run", lambda text: None)


@pytest.mark.parametrize("change", [{"lowercase": True}, {"tokenizer_size": 64}, {"special_tokens": "roberta"}])
def test_what_a_fixed_alphabet_cannot_do_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("MKTAYIAKQR\n" * 40)
    config = replace(PRESET, data=(str(tmp_path / "p.txt"),), corpus=replace(PRESET.corpus, **change))
    with pytest.raises(UserError, match=f"--{next(iter(change)).replace('_', '-')}: the alphabet"):
        open_dataset(config, tmp_path / "run", lambda text: None)
