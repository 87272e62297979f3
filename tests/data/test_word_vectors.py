"""Counted vectors: alike in like company, of one length, from the text to train on; training begins with them."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_mlm.config import DataConfig, ModelConfig, TrainConfig
from jax_mlm.data import word_vectors as counting
from jax_mlm.data.dataset import Dataset, open_dataset
from jax_mlm.data.word_vectors import word_vectors
from jax_mlm.model.heads import HANDED_ON, MaskedLM, handing_on, init_params
from jax_mlm.model.params import leaves
from jax_mlm.presets import PRESETS
from jax_mlm.run.checkpoint import saving
from jax_mlm.train.setup import set_up
from jax_mlm.train.state import init_or_restore

FRUIT, TOOLS = ("apple", "cherry", "grape", "melon"), ("anvil", "chisel", "hammer", "wrench")


def lines(count: int) -> list[str]:
    draw = random.Random(0)
    eaten = [f"we eat a ripe {draw.choice(FRUIT)} with sweet cream" for _ in range(count)]
    used = [f"the smith holds his {draw.choice(TOOLS)} of hard iron" for _ in range(count)]
    return [line for pair in zip(eaten, used, strict=True) for line in pair]


def opened(folder: Path, pack: str = "document", valid: tuple[str, ...] = ()) -> Dataset:
    (folder / "a.txt").write_text("\n".join(lines(60)))
    corpus = DataConfig(length=16, tokenizer_kind="word", cache=str(folder), pack=pack)
    (folder / "b.txt").write_text("\n".join(valid or ["we eat a ripe anvil"]))
    config = TrainConfig(data=(str(folder / "a.txt"),), valid=(str(folder / "b.txt"),), corpus=corpus)
    return open_dataset(config, folder / "run", say=lambda line: None)


def vectors_of(data: Dataset, seed: int = 0, width: int = 12) -> np.ndarray:
    return word_vectors(data.train, data.vocabulary.size, width, 0.02, seed)


def cosines(data: Dataset, vectors: np.ndarray, some: tuple[str, ...], others: tuple[str, ...]) -> np.ndarray:
    """Return those of each of `some` with each of `others`, without that of a word with itself."""
    near = [vectors[[data.tokenizer.token_to_id(word) for word in words]] for words in (some, others)]
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in near]
    return (unit[0] @ unit[1].T)[~np.eye(len(some), dtype=bool)] if some is others else unit[0] @ unit[1].T


@pytest.mark.parametrize("pack", ["document", "plain"])
def test_words_in_the_same_company_are_alike(tmp_path: Path, pack: str) -> None:
    data = opened(tmp_path, pack)
    vectors = vectors_of(data)
    assert vectors.dtype == np.float32
    for words in (FRUIT, TOOLS):
        assert cosines(data, vectors, words, words).min() > 0.7
    assert cosines(data, vectors, FRUIT, TOOLS).max() < 0.4


@pytest.mark.parametrize("width", [1, 12, 200])
def test_all_are_as_long_as_random_ones(tmp_path: Path, width: int) -> None:
    data = opened(tmp_path)
    vectors = vectors_of(data, width=width)
    counted = sorted(set(data.train.files.tokens.tolist()))
    np.testing.assert_allclose(np.linalg.norm(vectors[counted], axis=1), 0.02 * width**0.5, rtol=1e-4)
    alone = np.delete(vectors, counted, axis=0)  # [MASK] and the like
    assert len(alone) >= 3
    assert 0 < np.abs(alone).max() < 0.1
    assert len(np.unique(alone, axis=0)) == len(alone)


def test_the_seed_turns_them_and_nothing_else_does(tmp_path: Path) -> None:
    data = opened(tmp_path)
    first = vectors_of(data)
    np.testing.assert_array_equal(vectors_of(data), first)
    other = vectors_of(data, seed=1)
    assert np.abs(other - first).max() > 0.01
    for words in (FRUIT, TOOLS):
        np.testing.assert_allclose(cosines(data, other, words, words), cosines(data, first, words, words), atol=0.02)


def test_what_is_held_out_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = opened(tmp_path / "one"), opened(tmp_path / "two", valid=(*lines(20)[1::2], "we eat a ripe hammer"))
    np.testing.assert_array_equal(vectors_of(one), vectors_of(two))


def test_of_a_long_text_pieces_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(tmp_path)
    whole, _ = counting._sampled(data.train)
    monkeypatch.setattr(counting, "SAMPLE", len(whole) // 3)
    part, pieces = counting._sampled(data.train)
    assert 0.3 < len(part) / len(whole) <= 0.34
    assert len(np.unique(pieces)) == pieces[-1] + 1
    last = whole[-8:].tolist()
    assert part[-8:].tolist() == last  # to the end of the text
    assert cosines(data, vectors_of(data), TOOLS, TOOLS).min() > 0.5


def test_few_of_a_large_vocabulary_are_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = opened(tmp_path)
    monkeypatch.setattr(counting, "CELLS", 6 * data.vocabulary.size)
    vectors = vectors_of(data)
    assert np.isfinite(vectors).all()
    assert cosines(data, vectors, FRUIT, TOOLS).max() < cosines(data, vectors, FRUIT, FRUIT).min()


def test_training_begins_with_them(tmp_path: Path) -> None:
    data = opened(tmp_path)
    config = replace(
        data.config, steps=1, batch=8, embeddings="counted", model=ModelConfig(width=12, layers=1, heads=1, ff_width=8)
    )
    setup = set_up(config, tmp_path / "run")
    with saving(tmp_path / "run") as checkpoints:
        state, _ = init_or_restore(setup, optax.sgd(0.1), jax.random.key(0), checkpoints)
    np.testing.assert_array_equal(state.params["token_table"], vectors_of(data))
    fresh = handing_on(jax.jit(setup.task.init)(jax.random.key(0)))
    for path, leaf in leaves({**fresh, "token_table": state.params["token_table"]}).items():
        np.testing.assert_allclose(leaves(state.params)[path], leaf, rtol=1e-6)


@pytest.mark.parametrize("preset", ["tiny", "bert-base", "albert-base"])
def test_a_model_begins_by_naming_the_tokens_that_a_state_is_like(preset: str) -> None:
    """Whatever its family, the parameters keep their shapes, and queries and keys their values."""
    shape = replace(PRESETS[preset].model, vocab_size=40, layers=2, width=24, heads=2, ff_width=8)
    config = replace(shape, embedding_width=16 if shape.embedding_width else 0)
    before = init_params(config, jax.random.key(0))
    params = handing_on(before)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, before)
    old, new = (each["layer_0"]["attention"] for each in (before, params))
    np.testing.assert_array_equal(new["qkv"]["kernel"][:, :48], old["qkv"]["kernel"][:, :48])
    handed = new["qkv"]["kernel"][:, 48:] @ new["out"]["kernel"]
    np.testing.assert_allclose(handed, HANDED_ON * np.eye(24), atol=1e-6)
    table = 10 * params["token_table"]
    states = jnp.pad(table[:, None], ((0, 0), (0, 0), (0, config.width - config.table_width)))
    logits = MaskedLM(config).apply({"params": {**params, "token_table": table}}, states, method=MaskedLM.vocabulary)
    assert (logits[:, 0].argmax(-1) == np.arange(40)).mean() > 0.9
