"""Damaged token files of the cache are found before they are used, and made again after one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.faults import DAMAGES
from support.made import made_text

from jax_mlm.config import DataConfig
from jax_mlm.data.prepare import prepare
from jax_mlm.data.token_files import DIGESTS, DOCUMENTS, INDEX, TOKENS, WORDS, TokenFiles
from jax_mlm.data.tokenizer import train_tokenizer, vocabulary_of


@pytest.fixture
def read(tmp_path: Path) -> Callable[[], TokenFiles]:
    text = made_text(tmp_path / "made.txt")
    tokenizer = train_tokenizer(text.read_text().splitlines(), "word", 16)
    return lambda: prepare([text], tokenizer, vocabulary_of(tokenizer), DataConfig(), tmp_path / "cache")


def folder_of(cache: Path) -> Path:
    return next(path for path in (cache / "tokens").iterdir() if path.is_dir())


@pytest.mark.parametrize("name", [TOKENS, WORDS, DOCUMENTS, DIGESTS, INDEX])
@pytest.mark.parametrize("hurt", DAMAGES, ids=lambda hurt: hurt.__name__)
def test_damaged_token_files_are_made_again(
    hurt: Callable[[Path], None],
    name: str,
    read: Callable[[], TokenFiles],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens, words = (np.array(array) for array in (read().tokens, read().word_bits))
    hurt(folder_of(tmp_path / "cache") / name)
    again = read()
    np.testing.assert_array_equal(again.tokens, tokens)
    np.testing.assert_array_equal(again.word_bits, words)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {folder_of(tmp_path / 'cache')} is damaged ({'' if name == INDEX else name}")
    assert said.endswith("): made anew\n")
    assert said.count("\n") == 1
    read()
    assert capsys.readouterr().err == ""


def test_token_files_from_before_checksums_are_read(
    read: Callable[[], TokenFiles], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read()
    path = folder_of(tmp_path / "cache") / INDEX
    body = json.loads(path.read_text())
    del body["crc"]
    path.write_text(json.dumps(body))
    read()
    assert "crc" not in json.loads(path.read_text())
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", ["[]", "{", '{"/a": 3}', '{"/a": [1]}', "null"])
def test_damaged_hashes_of_texts_are_looked_up_anew(
    content: str, read: Callable[[], TokenFiles], tmp_path: Path
) -> None:
    before = read().fingerprint
    (tmp_path / "cache" / "tokens" / "hashes.json").write_text(content)
    assert read().fingerprint == before
