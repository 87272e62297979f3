"""Windows of fine-tuned models: their frame is the tokenizer's, and a long text costs no more than its length."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlm_onnx.answer.windows import WindowReader
from mlm_onnx.bundle.layout import BundleError, Head
from support.tokenizers import Watched, bundle_of, byte_level, reader_of, wordpiece
from tokenizers import Regex, normalizers

HEAD = Head((), "single", False, 4, False, 6, False)


@pytest.mark.parametrize("pair", [False, True])
def test_a_frame_is_found_by_a_word_that_the_tokenizer_knows(pair: bool, tmp_path: Path) -> None:
    tokenizer = wordpiece()
    expected = WindowReader(bundle_of(tokenizer, tmp_path, tokens={}), HEAD, pair).frame
    tokenizer.normalizer = normalizers.Replace("a", "")
    assert WindowReader(bundle_of(tokenizer, tmp_path, tokens={}), HEAD, pair).frame == expected
    tokenizer.normalizer = normalizers.Replace(Regex("."), "")
    with pytest.raises(BundleError, match="reads no plain text"):
        WindowReader(bundle_of(tokenizer, tmp_path, tokens={}), HEAD, pair)


def test_the_tokens_of_a_long_text_are_not_copied_for_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Counter[str]()
    tagger = WindowReader(bundle_of(wordpiece(), tmp_path, 16, tokens={}), HEAD, False)
    encoded = tagger.encoded
    monkeypatch.setattr(tagger, "encoded", lambda text: Watched(encoded(text), copies))
    assert len(tagger.words("the cat " * 100).rows) > 10
    reader = reader_of(byte_level(), tmp_path)
    encode = reader.tokenizer.encode
    watched = SimpleNamespace(encode=lambda *text, **how: Watched(encode(*text, **how), copies))
    monkeypatch.setattr(reader, "tokenizer", watched)
    assert len(reader.masked("the cat\n<mask> " + "the cat " * 20).ids) > 40
    assert max(copies.values()) < 10
