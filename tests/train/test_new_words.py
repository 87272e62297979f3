"""`--add-tokens`: new words behave as the tokenizer's own, and nothing about them is silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlm_onnx.answer.pieces import Pieces
from support.bundles import SYLLABLES
from support.tokenizers import MADE, reader_of
from tokenizers import Tokenizer

from jax_mlm.data.encoding import encode
from jax_mlm.data.tokenizer import mask_of, train_tokenizer
from jax_mlm.errors import UserError
from jax_mlm.train.new_words import AT_ONCE, NAMED, never_among, never_seen, with_words, words_of

LINES = [
    f"After the {a}{b} we met {c}{a} today and saw the {b}{c}s again."
    for a in SYLLABLES
    for b in SYLLABLES
    for c in SYLLABLES[:6]
]
ASIA = "ฉันติดเชื้อโควิดเมื่อวานนี้ 백신을 맞았다 ワクチンを打った 我感染了新冠肺炎病毒，我在家休息。"
KINDS = {"wordpiece": 192, "bpe": 320, "unigram": 128, "word": 64}


def trained(kind: str, **options: Any) -> Tokenizer:
    return train_tokenizer(LINES, kind, KINDS[kind], **options)  # type: ignore[arg-type]


def entries(tokenizer: Tokenizer) -> int:
    return tokenizer.get_vocab_size(with_added_tokens=True)


@pytest.fixture(params=["wordpiece", "bpe", "unigram"])
def grown(request: pytest.FixtureRequest) -> Tokenizer:
    return with_words(trained(request.param), ["Deniz", "โควิด", "백신", "ワクチン", "新冠肺炎"])


def test_a_new_word_is_asked_for_and_filled_in_with_its_space(grown: Tokenizer, tmp_path: Path) -> None:
    pieces, reader = Pieces(grown), reader_of(grown, tmp_path)
    mask, id = reader.bundle.special.mask, grown.token_to_id("Deniz")
    for before in (" ", "", "\n", "("):
        assert pieces.of("Deniz", before) == [id]
    text = f"we met {mask} and"
    assert pieces.fill(text, 7, 7 + len(mask), id) == "we met Deniz and"
    assert pieces.shown(id) == "Deniz"
    for known, asked in (("we met Deniz and", text), ("(Deniz), and", f"({mask}), and"), ("Deniz met", f"{mask} met")):
        trained_on, query = grown.encode(known).ids, reader.masked(asked).ids.tolist()
        assert query == [reader.bundle.special.mask_id if token == id else token for token in trained_on]
    assert id not in grown.encode("we met Denizli and MyDeniz").ids


def test_new_words_are_found_without_spaces_and_with_particles(grown: Tokenizer) -> None:
    ids = encode(grown, [ASIA]).tokens.tolist()
    assert [ids.count(grown.token_to_id(word)) for word in ("โควิด", "백신", "ワクチン", "新冠肺炎")] == [1] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_are_there_are_left_as_they_were(kind: str) -> None:
    tokenizer, said = trained(kind), []
    vocabulary = tokenizer.get_vocab()
    there = [word for word in ("today", "the", "met") if {word, f"Ġ{word}", f"▁{word}"} & set(vocabulary)]
    assert there
    longer = with_words(tokenizer, [*there, "Quokka"], said.append)
    assert entries(longer) == entries(tokenizer) + 1
    assert said == [f"--add-tokens: tokens already, and left as they were: {', '.join(there)}"]
    for line in LINES[:50]:
        assert longer.encode(line).ids == tokenizer.encode(line).ids
    with pytest.raises(UserError, match="every word in it is a token already"):
        with_words(tokenizer, there)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_word_is_there_in_any_case_where_case_is_lost(kind: str) -> None:
    tokenizer = trained(kind, lowercase=True)
    with pytest.raises(UserError, match="every word in it is a token already"):
        with_words(tokenizer, ["The", "THE"])
    longer = with_words(tokenizer, ["Quokka", "quokka", "QUOKKA"])
    assert entries(longer) == entries(tokenizer) + 1
    for word in ("Quokka", "quokka", "QUOKKA"):
        assert longer.token_to_id("Quokka") in longer.encode(f"we met {word} today").ids


@pytest.mark.parametrize("kind", MADE)
def test_every_kind_of_tokenizer_takes_new_words(kind: str, tmp_path: Path) -> None:
    """What stands around a new word is what stands around a mask, whatever the tokenizer."""
    longer = with_words(MADE[kind](), ["Quokka"])
    reader = reader_of(longer, tmp_path)
    id, mask = longer.token_to_id("Quokka"), longer.id_to_token(mask_of(longer))
    assert Pieces(longer).of("Quokka") == [id]
    for text in ("the Quokka sat", "Quokka sat", "the Quokka"):
        query = reader.masked(text.replace("Quokka", mask)).ids
        assert longer.encode(text).ids == np.where(query == reader.bundle.special.mask_id, id, query).tolist(), text


def test_a_missing_file_is_not_taken_for_a_word(tmp_path: Path) -> None:
    there = tmp_path / "words.txt"
    there.write_text("\ufeffzebra\n\n  Quokka \nzebra\n", encoding="utf-8")
    assert words_of([str(there), "C++", "U.S.", "Node.js", "e.g."]) == [
        "zebra",
        "Quokka",
        "C++",
        "U.S.",
        "Node.js",
        "e.g.",
    ]
    for missing in ("word.txt", "WORDS.TXT", "lists/words", str(tmp_path / "nowhere"), "words/", "terms.csv"):
        with pytest.raises(UserError, match="no such file") as said:
            words_of([missing])
        assert missing in str(said.value)


def test_a_file_without_words_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    for given in (["", "  "], [str(tmp_path / "empty.txt")]):
        with pytest.raises(UserError, match="there is no word in it"):
            words_of(given)


def test_words_that_never_occur_are_counted_and_named() -> None:
    tokenizer = with_words(trained("bpe"), ["Quokka", "zebra", "and saw"])
    tokens = encode(tokenizer, [*LINES, "the Quokkas"]).tokens
    (line,) = never_seen(["Quokka", "zebra", "and saw", "today"], tokenizer, tokens)
    assert "2 of 3 new words never occur in --data" in line
    assert line.endswith(": Quokka, zebra")
    many = [f"xy{number}z" for number in range(NAMED + 2)]
    (line,) = never_seen(many, with_words(trained("bpe"), many), encode(tokenizer, LINES[:9]).tokens[:1])
    assert line.endswith("and 2 more")
    assert never_seen(["and saw"], tokenizer, tokens) == []
    far = np.zeros(AT_ONCE + 2, np.uint16)
    far[-1] = 9
    assert never_among(far, [9, 10]) == [10]
