"""From the configuration to rows: sources of every kind mixed, what a document is, how rows are packed, the split."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.rows import batch_in_order
from tokenizers import Tokenizer

from jax_mlm.config import DataConfig, TrainConfig
from jax_mlm.data.batches import token_counts
from jax_mlm.data.dataset import Dataset, open_dataset
from jax_mlm.data.tokenizer import Vocabulary, vocabulary_of
from jax_mlm.errors import UserError

LINES = [f"number {i} of {i % 7} grey stones lies in the {i % 11} th river of the old valley" for i in range(240)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """The lines, 40 each in plain text, gzip, xz, zstandard, JSON lines and Parquet."""
    zstandard = pytest.importorskip("zstandard")
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    folder = tmp_path_factory.mktemp("mixed")
    parts = [LINES[i : i + 40] for i in range(0, 240, 40)]
    text = ["\n".join(part).encode() for part in parts]
    (folder / "a.txt").write_bytes(text[0])
    (folder / "b.txt.gz").write_bytes(gzip.compress(text[1]))
    (folder / "c.txt.xz").write_bytes(lzma.compress(text[2]))
    (folder / "d.txt.zst").write_bytes(zstandard.compress(text[3]))
    (folder / "e.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in parts[4]))
    pq.write_table(pa.table({"body": parts[5]}), folder / "f.parquet")
    return folder


def opened(data: list[Path], cache: Path, valid: list[Path] = (), **corpus: object) -> Dataset:
    """The rows of these sources, 64 tokens long."""
    made = DataConfig(length=64, tokenizer_limit=128, text_field="body", cache=str(cache), **corpus)
    config = TrainConfig(preset="tiny", data=tuple(map(str, data)), valid=tuple(map(str, valid)), corpus=made)
    return open_dataset(config, cache / "no-run", say=lambda text: None)


def texts(data: Dataset, rows: str = "train") -> set[str]:
    """The documents that rows stand for, read back from their tokens; they fit into a row whole."""
    chosen = getattr(data, rows)
    ends = chosen.starts + chosen.sizes
    return {data.tokenizer.decode(chosen.files.tokens[a:b].tolist()) for a, b in zip(chosen.starts, ends, strict=True)}


def test_sources_of_every_kind_mix(mixed: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(LINES))
    one, many = opened([plain], tmp_path), opened([mixed], tmp_path)
    globbed = opened([mixed / "[a-d].*", mixed / "e.jsonl", mixed / "f.parquet"], tmp_path)
    for data in (many, globbed):
        assert texts(data) | texts(data, "valid") == texts(one) | texts(one, "valid")
        assert not texts(data) & texts(data, "valid"), "the split is by document"
        assert data.config.model.vocab_size % 64 == 0


@pytest.mark.parametrize(("document", "count"), [("line", 6), ("blank", 3), ("file", 1)])
def test_a_document_is_a_line_a_paragraph_or_a_file(tmp_path: Path, document: str, count: int) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join("\n".join(LINES[2 * i : 2 * i + 2]) for i in range(3)))
    data = opened([tmp_path / "a.txt"], tmp_path, [tmp_path / "b.txt"], document=document, tokenizer_kind="word")
    assert len(data.train.files.documents) - 1 == count
    assert data.fingerprints.keys() == {"train", "valid"}


def test_plain_packing_lets_attention_cross_and_pads_nothing(mixed: Path, tmp_path: Path) -> None:
    apart, plain = (opened([mixed], tmp_path, pack=pack) for pack in ("document", "plain"))
    rows = len(plain.train)
    crossing = batch_in_order(plain.train, 0, rows - 1)
    assert set(np.unique(crossing.segments)) == {1}
    assert batch_in_order(apart.train, 0, 8).segments.max() > 1
    size = plain.config.model.vocab_size
    np.testing.assert_array_equal(token_counts(plain.train, size), token_counts(apart.train, size))


def test_a_resumed_run_keeps_its_tokenizer(mixed: Path, tmp_path: Path) -> None:
    first = opened([mixed], tmp_path)
    first.tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = replace(first.config, resume=True, data=(str(mixed / "a.txt"),))
    again = open_dataset(config, tmp_path, say=lambda text: None)
    assert again.tokenizer.to_str() == first.tokenizer.to_str()


@pytest.mark.parametrize("kind", ["word", "wordpiece", "bpe", "unigram"])
def test_a_trained_tokenizer_and_its_file_share_the_cache(kind: str, tmp_path: Path) -> None:
    draw, text = random.Random(0), tmp_path / "text.txt"
    words = ["".join(draw.choices("abcdefghijklmno", k=draw.randint(2, 8))) for _ in range(300)]
    text.write_text("\n".join(" ".join(draw.choices(words, k=9)) for _ in range(300)))
    corpus = DataConfig(length=64, tokenizer_kind=kind, tokenizer_limit=384, cache=str(tmp_path / "cache"))
    config = TrainConfig(preset="tiny", data=(str(text),), corpus=corpus)
    trained = open_dataset(config, tmp_path, say=lambda text: None)
    trained.tokenizer.save(str(tmp_path / "tokenizer.json"))
    given = replace(config, tokenizer=str(tmp_path / "tokenizer.json"))
    loaded = open_dataset(given, tmp_path, say=lambda text: None)
    assert loaded.fingerprints == trained.fingerprints
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["tokens"]


def test_the_special_tokens_are_looked_up_once(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []

    def counted(tokenizer: Tokenizer) -> Vocabulary:
        encoded.append("once")
        return vocabulary_of(tokenizer)

    for module in ("jax_mlm.data.dataset", "jax_mlm.data.tokenizer"):
        monkeypatch.setattr(f"{module}.vocabulary_of", counted)
    opened([mixed / "a.txt"], tmp_path, [mixed / "b.txt.gz"])
    assert encoded == ["once"]


def test_the_field_is_named_where_it_is_missing(mixed: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=(str(mixed),), corpus=DataConfig(cache=str(tmp_path)))
    with pytest.raises(UserError, match=r"e\.jsonl, line 1: no field 'text'.*--text-field"):
        open_dataset(config, tmp_path, say=lambda text: None)
