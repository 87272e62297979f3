"""Documents that are the same are found, whatever files, chunks and interruptions lie between them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.paths import ROOT
from tokenizers import Tokenizer

from jax_mlm.config import DataConfig, TrainConfig
from jax_mlm.data import prepare as corpus
from jax_mlm.data import sources, token_files
from jax_mlm.data.copies import copies, without_copies
from jax_mlm.data.dataset import open_dataset
from jax_mlm.data.prepare import prepare
from jax_mlm.data.token_files import TokenFiles
from jax_mlm.data.tokenizer import load_tokenizer, train_tokenizer, vocabulary_of

WORDS = ["bade", "tuso", "lami", "river", "stone", "the", "of", "old", "mill", "boat"]


def texts(count: int, different: int, seed: int = 0, words: int = 40) -> list[str]:
    draw = random.Random(seed)
    pool = [" ".join(draw.choices(WORDS, k=draw.randint(1, words))) + f" {i}" for i in range(different)]
    return [draw.choice(pool) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*texts(300, 300), "0123456789"], "wordpiece", 64)


@pytest.fixture
def small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        (sources, "BLOCK", 700), (sources, "PIECE", 300), (corpus, "CHUNK", 900), (token_files, "SAVE_EVERY", 2),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


def files_of(paths: list[Path], tokenizer: Tokenizer, cache: Path, **options: str) -> TokenFiles:
    return prepare(paths, tokenizer, vocabulary_of(tokenizer), DataConfig(**options), cache)


@pytest.mark.parametrize("document", ["line", "blank"])
def test_equal_texts_have_equal_hashes_and_others_do_not(
    tmp_path: Path, tokenizer: Tokenizer, small_work: None, document: str
) -> None:
    made = texts(200, 60)
    made[50] = made[100] = " ".join(["stone"] * 150)  # longer than a piece
    (tmp_path / "a.txt").write_text(("\n" if document == "line" else "\n\n").join(made[:120]))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in made[120:]))
    files = files_of([tmp_path / "a.txt", tmp_path / "b.jsonl"], tokenizer, tmp_path, document=document)
    assert files.digests is not None
    assert len(files.digests) == len(made)
    assert [files.digests.tolist().index(d) for d in files.digests.tolist()] == [made.index(text) for text in made]
    kept = without_copies(files, np.arange(len(made)))
    assert [made[i] for i in kept] == list(dict.fromkeys(made))
    assert files.figures is not None
    assert files.figures.characters == sum(map(len, made))


@pytest.mark.parametrize("killed_after", [1, 2, 3, 5])
def test_an_interruption_changes_no_hash_and_no_figure(
    tmp_path: Path, tokenizer: Tokenizer, small_work: None, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join([*texts(60, 30), " ".join(["stone <unk>"] * 400), *texts(60, 30)]))
    whole = files_of([path], tokenizer, tmp_path / "whole")
    append = token_files.Writer.append

    def killed(self: token_files.Writer, *arguments: object) -> None:
        if self.chunks == killed_after:
            raise KeyboardInterrupt
        append(self, *arguments)

    monkeypatch.setattr(token_files.Writer, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        files_of([path], tokenizer, tmp_path / "killed")
    monkeypatch.setattr(token_files.Writer, "append", append)
    again = files_of([path], tokenizer, tmp_path / "killed")
    assert np.array_equal(again.digests, whole.digests)
    assert again.figures == whole.figures
    assert whole.figures is not None
    assert (whole.figures.written, whole.figures.unknown) == (400, 400)


def test_what_both_sides_hold_is_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    one, two = texts(200, 80), texts(100, 80) + texts(30, 30, seed=5)
    for name, made in (("a", one), ("b", two)):
        (tmp_path / f"{name}.txt").write_text("\n".join(made))
    a, b = (files_of([tmp_path / f"{name}.txt"], tokenizer, tmp_path) for name in "ab")
    every_a, every_b = np.arange(len(one)), np.arange(len(two))
    assert copies(b, every_b, a, every_a) == sum(text in set(one) for text in two)
    kept = without_copies(a, every_a, b, every_b)
    assert [one[i] for i in kept] == [text for text in dict.fromkeys(one) if text not in set(two)]
    assert copies(b, every_b, a, kept) == 0


@pytest.mark.parametrize("valid", [False, True])
def test_dedup_leaves_one_of_each_and_none_on_both_sides(tmp_path: Path, tokenizer: Tokenizer, valid: bool) -> None:
    made, held = texts(400, 100), texts(50, 100)
    (tmp_path / "a.txt").write_text("\n".join(made))
    (tmp_path / "b.txt").write_text("\n".join(held))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    corpus = DataConfig(length=64, valid_fraction=0.1, cache=str(tmp_path))
    config = TrainConfig(
        preset="tiny",
        data=(str(tmp_path / "a.txt"),),
        valid=(str(tmp_path / "b.txt"),) if valid else (),
        tokenizer=str(tmp_path / "tokenizer.json"),
        corpus=corpus,
    )
    read = open_dataset(config, tmp_path).read
    assert read.both > 0.5 * read.valid_documents
    assert read.dropped == 0
    once = open_dataset(replace(config, corpus=replace(corpus, dedup=True)), tmp_path).read
    assert once.both == 0
    different = set(made) - (set(held) if valid else set())
    assert once.train_documents + (0 if valid else once.valid_documents) == len(different)
    assert once.dropped == len(made) - len(different)


def test_a_run_of_an_earlier_version_keeps_its_tokens_and_its_split(tmp_path: Path) -> None:
    golden = ROOT / "tests" / "golden"
    data = json.loads((golden / "run" / "run.json").read_text())["data"]
    tokenizer = load_tokenizer(golden / "run" / "tokenizer.json")
    now = prepare([golden / "text.txt"], tokenizer, vocabulary_of(tokenizer), DataConfig(), tmp_path)
    before = prepare(
        [golden / "text.txt"], tokenizer, vocabulary_of(tokenizer), DataConfig(), tmp_path, before=data["train"]
    )
    assert before.fingerprint == data["train"] != now.fingerprint
    assert np.array_equal(before.tokens, now.tokens)
    assert np.array_equal(before.documents, now.documents)

    marked = tmp_path / "marked.txt"
    marked.write_text("the [MASK] river\nthe old mill [SEP] boat\n" * 3)
    old = corpus._key(corpus._sources([marked], tmp_path), tokenizer.to_str(), DataConfig(), 1)
    first, second = (
        prepare([marked], tokenizer, vocabulary_of(tokenizer), DataConfig(), tmp_path, before=key) for key in (old, "")
    )
    mask = vocabulary_of(tokenizer).mask
    assert (np.count_nonzero(first.tokens == mask), np.count_nonzero(second.tokens == mask)) == (3, 0)


def test_token_files_without_figures_are_read(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """As an earlier version left them: three files, and an index that knows no figures."""
    path = tmp_path / "a.txt"
    path.write_text("\n".join(texts(50, 20)))
    made = files_of([path], tokenizer, tmp_path)
    [index] = (tmp_path / "tokens").glob("*/index.json")
    body = json.loads(index.read_text())
    del body["figures"], body["sizes"][token_files.DIGESTS]
    index.write_text(json.dumps(body))
    (index.parent / token_files.DIGESTS).unlink()
    again = files_of([path], tokenizer, tmp_path)
    assert again.digests is None
    assert again.figures is None
    assert np.array_equal(again.tokens, made.tokens)
