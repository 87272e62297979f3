"""Training is exact and repeatable, the unknown token is one token, and bad tokenizers are named."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models

from jax_mlm.data.tokenizer import (
    VocabularyTooLarge,
    evenly,
    load_tokenizer,
    padded_size,
    train_tokenizer,
    vocabulary_of,
)
from jax_mlm.errors import UserError
from jax_mlm.presets import SENTENCE

KINDS = ("wordpiece", "bpe", "unigram")


def made_text(lines: int = 3000, seed: int = 0) -> list[str]:
    """English-like words, drawn with a long tail."""
    draw = random.Random(seed)
    parts = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = ["".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(2000)]
    return [" ".join(words[int(2000 * draw.random() ** 3)] for _ in range(12)) + "." for _ in range(lines)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowercase", [False, True])
def test_two_trainings_are_identical_and_of_the_size_asked(kind: str, lowercase: bool) -> None:
    text = [line.capitalize() + " Q" * (i % 2) for i, line in enumerate(made_text(800))]
    first, second = (train_tokenizer(iter(text), kind, 500, lowercase) for _ in range(2))
    assert first.to_str() == second.to_str()
    assert vocabulary_of(first).size == first.get_vocab_size() == padded_size(500, kind) == 512
    assert vocabulary_of(first).special == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_frame_round_trip_and_mask(kind: str) -> None:
    tokenizer = train_tokenizer(made_text(), kind, 512)
    v = vocabulary_of(tokenizer)
    line = made_text(seed=1)[0]
    ids = tokenizer.encode(line).ids
    assert (ids[0], ids[-1]) == (v.cls, v.sep)
    decoded = tokenizer.decode(ids)
    assert decoded.replace(" ", "") == line.replace(" ", "")
    masked = tokenizer.encode("bade [MASK] tuso", add_special_tokens=False)
    without = tokenizer.encode("bade tuso", add_special_tokens=False)
    assert [id for id in masked.ids if id != v.mask] == without.ids
    assert masked.ids.count(v.mask) == 1


@pytest.mark.parametrize("kind", [*KINDS, "word"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_literal_unknown_is_one_unknown_token(kind: str, lowercase: bool) -> None:
    text = [line + " <unk> , Bade" for line in made_text(500)]
    tokenizer = train_tokenizer(text, kind, 200 if kind == "word" else 384, lowercase)
    v = vocabulary_of(tokenizer)
    known = tokenizer.encode("Bade , Bade", add_special_tokens=False).ids
    assert v.unk not in known
    assert tokenizer.encode("Bade <unk> , Bade", add_special_tokens=False).ids.count(v.unk) == 1
    assert tokenizer.encode("<unk> <unk>", add_special_tokens=False).ids == [v.unk, v.unk]
    assert v.unk in v.special
    assert "<unk>" not in tokenizer.get_vocab()
    assert Tokenizer.from_str(tokenizer.to_str()).encode("a <unk>").ids == tokenizer.encode("a <unk>").ids


def test_wikitext_unknown_is_one_token(shared_data) -> None:
    lines = [line for line in (shared_data / "wikitext-2/wiki.valid.tokens").read_text().split("\n") if line.strip()]
    tokenizer = train_tokenizer(lines, "wordpiece", 2048)
    unk = vocabulary_of(tokenizer).unk
    for encoding, line in zip(tokenizer.encode_batch(lines), lines, strict=True):
        at = [offsets for id, offsets in zip(encoding.ids, encoding.offsets, strict=True) if id == unk]
        assert len(at) >= line.count("<unk>")
        assert sum(line[end - 1] == ">" for _, end in at) == line.count("<unk>")


def test_founding_sentence_gives_sixteen_words() -> None:
    tokenizer = train_tokenizer([SENTENCE], "word", 16)
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert vocab == ["[PAD]", "[UNK]", "[MASK]", *SENTENCE.split()]
    v = vocabulary_of(tokenizer)
    assert (v.size, v.pad, v.unk, v.mask, v.cls, v.sep, v.special) == (16, 0, 1, 2, None, None, (0, 1, 2))
    assert tokenizer.encode(SENTENCE).ids == list(range(3, 16))


@pytest.mark.parametrize(("kind", "asked"), [("wordpiece", 8192), ("bpe", 8192), ("unigram", 8192), ("word", 8192)])
def test_a_vocabulary_beyond_the_data_names_what_can_be_reached(kind: str, asked: int) -> None:
    text = made_text(200)
    with pytest.raises(VocabularyTooLarge, match=r"--tokenizer-size 8192.*at most") as error:
        train_tokenizer(text, kind, asked)
    reachable = error.value.reachable
    assert vocabulary_of(train_tokenizer(text, kind, reachable)).size == reachable


def test_a_vocabulary_too_small_and_a_text_of_nothing() -> None:
    with pytest.raises(UserError, match="--tokenizer-size 64: byte-level bpe needs at least 320"):
        train_tokenizer(made_text(50), "bpe", 64)
    with pytest.raises(UserError, match="no text"):
        train_tokenizer([" ", ""], "wordpiece", 64)


def test_the_sample_is_bounded_and_even() -> None:
    texts = [f"{i:09d}" for i in range(1000)]
    assert evenly(texts, 9000) == texts
    assert evenly(texts, 900) == texts[::16]
    assert evenly(iter(["x" * 99]), 10) == ["x" * 99]


def test_bad_tokenizers_are_named(tmp_path) -> None:
    broken, plain = tmp_path / "broken.json", tmp_path / "plain.json"
    broken.write_text("{}")
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(plain))
    for path, reason in ((tmp_path / "none.json", "no such file"), (tmp_path, "folder"), (broken, "not a tokenizer")):
        with pytest.raises(UserError, match=reason) as error:
            load_tokenizer(path)
        assert str(path) in str(error.value)
        assert "--tokenizer" in str(error.value)
    with pytest.raises(UserError, match=r"plain.json: .*\[MASK\]"):
        load_tokenizer(plain)


def test_a_stored_truncation_is_undone_and_framing_follows_the_tokenizer(tmp_path) -> None:
    tokenizer = train_tokenizer(made_text(300), "wordpiece", 256)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(tmp_path / "t.json"))
    loaded = load_tokenizer(tmp_path / "t.json")
    assert len(loaded.encode(" ".join(["bade"] * 50))) > 50
    assert len(loaded.encode("")) == 2
    unframed = train_tokenizer([SENTENCE], "word", 16)
    unframed.add_special_tokens(["[CLS]", "[SEP]"])
    v = vocabulary_of(unframed)
    assert (v.cls, v.sep) == (None, None)
    assert v.special == (0, 1, 2, 16, 17)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert-tiny-english", {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103, "size": 30522}),
        ("roberta-antibody", {"pad": 1, "unk": 3, "cls": 0, "sep": 2, "mask": 24, "size": 25}),
        ("albert-reactions", {"pad": 0, "unk": 11, "cls": 12, "sep": 13, "mask": 14, "size": 591}),
    ],
)
def test_published_tokenizers(shared_data, name: str, expected: dict[str, int]) -> None:
    v = vocabulary_of(load_tokenizer(shared_data / "weights" / name / "tokenizer.json"))
    assert {key: getattr(v, key) for key in expected} == expected


def test_data_modules_do_not_import_jax() -> None:
    heavy = "{'jax', 'pyarrow', 'zstandard', 'rich'} & set(sys.modules)"
    code = f"import sys, jax_mlm.data.batches, jax_mlm.data.prepare; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", [*KINDS, "word"])
def test_the_special_tokens_of_roberta(kind: str) -> None:
    tokenizer = train_tokenizer(made_text(500), kind, 200 if kind == "word" else 384, special="roberta")
    v = vocabulary_of(tokenizer)
    assert {"<mask>", "<pad>", "<unk>"} <= set(tokenizer.get_vocab())
    assert "[MASK]" not in tokenizer.get_vocab()
    assert tokenizer.encode("a <unk>").ids.count(v.unk) >= 1
    if kind != "word":
        names = [tokenizer.id_to_token(id) for id in range(5)]
        assert names == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        assert (v.pad, v.mask, v.special) == (1, 4, (0, 1, 2, 3, 4))
        assert tokenizer.encode("bade", "bade").tokens.count("</s>") == 3
    masked = tokenizer.encode("bade <mask> tuso", add_special_tokens=False)
    assert masked.ids.count(v.mask) == 1


RESERVED = ("[unused0]", "[unused993]", "<unused3>", "madeupword0002", "<extra_id_7>", "<|reserved_special_token_5|>")
NOT_RESERVED = ("unused", "[unused", "unused0", "<0x0A>", "<b1>", "[12]", "reserved", "word0", "<null>", "##unused1")


def test_reserved_pieces_are_special_and_no_others() -> None:
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    pieces = (*names, *RESERVED, "<s>NOTUSED", "<unk>NOTUSED", "<null_1>", *NOT_RESERVED)
    tokenizer = Tokenizer(models.WordLevel({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(names))
    assert vocabulary_of(tokenizer).special == tuple(range(len(pieces) - len(NOT_RESERVED)))
