"""Sample sentences: the same at every call, whole words of the text, never special tokens, answered as by one query."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from support.rows import prepared
from support.scripts import lines_of
from support.tokenizers import MADE

from jax_mlm.config import DataConfig, ModelConfig
from jax_mlm.data.batches import pack_rows
from jax_mlm.data.tokenizer import VocabularyTooLarge, train_tokenizer, vocabulary_of
from jax_mlm.evals.samples import COUNT, SHORTEST, TOP_K, choose_samples, compile_samples, to_json
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import init_params, make_forward
from jax_mlm.report.words import describe_answer
from jax_mlm.train.new_words import with_words

LINES = [
    *(f"The {a} {b} {c} the {d} near an old bridge . Then it leaves without a word ." for a, b, c, d in zip(
        ["red", "tall", "small", "brown"] * 20, ["fox", "man", "bird", "horse"] * 20,
        ["sees", "hears", "follows", "likes"] * 20, ["river", "stone", "garden", "street"] * 20, strict=True,
    )),
    *("= 1 = 2 @-@ 3 , 4" for _ in range(20)),
]  # fmt: skip


def made(folder: Path, kind: str, pack: str = "document", length: int = 32, lines=LINES):
    (folder / "text.txt").write_text("\n".join(lines))
    try:
        tokenizer = train_tokenizer(lines, kind, 512)
    except VocabularyTooLarge as error:
        tokenizer = train_tokenizer(lines, kind, error.reachable)
    files = prepared([folder / "text.txt"], tokenizer, DataConfig(), folder / "cache")
    return pack_rows(files, vocabulary_of(tokenizer), length, pack), tokenizer


@pytest.mark.parametrize(("kind", "pack"), [("wordpiece", "document"), ("bpe", "plain"), ("unigram", "document")])
def test_samples_are_fixed_readable_and_hide_a_word_of_the_text(tmp_path, kind, pack):
    rows, tokenizer = made(tmp_path, kind, pack)
    samples = choose_samples(rows, tokenizer)
    assert samples == choose_samples(rows, tokenizer)
    assert len(samples) == COUNT
    mask, special = tokenizer.id_to_token(rows.vocabulary.mask), set(rows.vocabulary.special)
    for sample in samples:
        assert not special & set(sample.ids)
        assert len(sample.ids) >= SHORTEST
        assert sample.text.count(mask) == 1
        assert sample.right.isalpha()
        text = sample.right.join(sample.split)
        assert any(text.replace(" ", "") in line.replace(" ", "") for line in LINES), text
        assert f" {sample.right} " in f" {text} ".replace(".", " ."), "a whole word"
        assert "@" not in text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sample_has_the_spaces_of_its_text(tmp_path, kind):
    """None in Chinese, and one before a word of --add-tokens, whose token has it inside."""
    chinese = lines_of("Chinese", 200, seed=0)
    rows, tokenizer = made(tmp_path, kind, lines=chinese)
    for sample in choose_samples(rows, tokenizer):
        assert any(sample.right.join(sample.split) in line for line in chinese), sample
    longer = with_words(made(tmp_path, kind)[1], ["Deniz"])
    line = "The red man sees the tall Deniz near an old bridge ."
    (tmp_path / "added.txt").write_text("\n".join([line] * 40))
    files = prepared([tmp_path / "added.txt"], longer, DataConfig(), tmp_path / "cache")
    samples = choose_samples(pack_rows(files, vocabulary_of(longer), 32, "document"), longer)
    shown = [sample.right.join(sample.split) for sample in samples]
    assert all(text in line and " Deniz" in text for text in shown), shown


def test_one_sentence_gives_different_gaps_and_numbers_alone_still_give_some(tmp_path):
    rows, tokenizer = made(tmp_path, "word", length=16, lines=["one sentence with six good words"])
    samples = choose_samples(rows, tokenizer)
    assert len({sample.right for sample in samples}) == len(samples) == COUNT
    (tmp_path / "numbers").mkdir()
    rows, tokenizer = made(tmp_path / "numbers", "word", lines=["1 2 3 4 5 6 7"] * 5)
    samples = choose_samples(rows, tokenizer)
    assert samples
    assert not {sample.ids[sample.at] for sample in samples} & set(rows.vocabulary.special)


def test_answers_are_those_of_one_query_each_and_nothing_compiles_again(tmp_path, caplog):
    rows, tokenizer = made(tmp_path, "wordpiece")
    vocabulary = rows.vocabulary
    model = ModelConfig(vocab_size=256, width=32, layers=1, heads=2, ff_width=48, max_length=64)
    forward = make_forward(model)
    params = jax.tree.map(
        lambda x: 8 * x if x.ndim == 2 else x, jax.jit(partial(init_params, model))(jax.random.key(1))
    )
    samples = choose_samples(rows, tokenizer)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with jax.log_compiles():
        answer = compile_samples(forward, params, samples, rows, tokenizer, place)
        assert "Compiling" in caplog.text
        caplog.clear()
        answers = answer(params)
        assert answer(params) == answers
        assert "Compiling" not in caplog.text
    assert [a.text for a in answers] == [s.text for s in samples]
    query = jax.jit(forward)
    for sample, given in zip(samples, answers, strict=True):
        ids = np.full((1, 40), vocabulary.pad, np.int32)  # alone, and with another padding
        framed = [vocabulary.cls, *sample.ids, vocabulary.sep]
        ids[0, : len(framed)] = framed
        at = np.array([[1 + sample.at]])
        assert tokenizer.decode([ids[0, at[0, 0]]]) == given.right
        ids[0, at] = vocabulary.mask
        inputs = Inputs(ids, (np.arange(40) < len(framed)).astype(np.int32)[None], np.arange(40, dtype=np.int32)[None])
        likely = np.asarray(jax.nn.softmax(query(params, inputs, at)[0, 0, : vocabulary.size]))
        assert [p for _, p in given.candidates] == pytest.approx(sorted(likely)[: -TOP_K - 1 : -1], rel=1e-4)
        assert given.probability == pytest.approx(likely[sample.ids[sample.at]], rel=1e-4)
        assert f"right: {sample.right}" in describe_answer(given)
    assert [s["right"] for s in to_json(answers)] == [s.right for s in samples]


def test_a_sample_is_cut_and_hidden_at_whole_characters(tmp_path):
    """Byte-level pieces may be parts of a character."""
    tokenizer = train_tokenizer(["the 我 爱 你 我爱 你我 我我 爱爱 of and then there"] * 20, "bpe", 267)
    lines = ["我😀爱😁你😂" * 9] * 20
    (tmp_path / "text.txt").write_text("\n".join(lines))
    files = prepared([tmp_path / "text.txt"], tokenizer, DataConfig(), tmp_path / "cache")
    samples = choose_samples(pack_rows(files, vocabulary_of(tokenizer), 32, "document"), tokenizer)
    assert samples
    assert not any("\ufffd" in "".join((*sample.split, sample.right)) for sample in samples), samples


@pytest.mark.parametrize("kind", ["end of word", "characters"])
def test_a_sample_of_a_published_tokenizer_has_the_spaces_of_its_text(tmp_path, kind):
    tokenizer, line = MADE[kind](), "the cat sat here and met the cat today ."
    (tmp_path / "text.txt").write_text("\n".join([line] * 40))
    files = prepared([tmp_path / "text.txt"], tokenizer, DataConfig(), tmp_path / "cache")
    for sample in choose_samples(pack_rows(files, vocabulary_of(tokenizer), 32, "document"), tokenizer):
        assert line.startswith(sample.right.join(sample.split).removesuffix(".").rstrip()), sample
