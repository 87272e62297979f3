"""Training is exact and repeatable, the unknown token is one token, and bad tokenizers are named."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import textwrap
import time
from functools import cache

import pytest
from tokenizers import AddedToken, Tokenizer, models

from jax_mlm.data.encoding import encode
from jax_mlm.data.learning import NAMES
from jax_mlm.data.tokenizer import (
    SPECIAL,
    VocabularyTooLarge,
    as_text,
    evenly,
    load_tokenizer,
    padded_size,
    train_tokenizer,
    vocabulary_of,
)
from jax_mlm.errors import UserError
from jax_mlm.presets import SENTENCE

KINDS = ("wordpiece", "bpe", "unigram")


@cache
def made_text(lines: int = 3000, seed: int = 0) -> list[str]:
    """English-like words, drawn with a long tail."""
    draw = random.Random(seed)
    parts = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = ["".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(2000)]
    return [" ".join(words[int(2000 * draw.random() ** 3)] for _ in range(12)) + "." for _ in range(lines)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowercase", [False, True])
def test_two_trainings_are_identical_and_of_the_size_asked(kind: str, lowercase: bool) -> None:
    text = [line.capitalize() + " Q" * (i % 2) for i, line in enumerate(made_text(400))]
    first, second = (train_tokenizer(iter(text), kind, 500, lowercase) for _ in range(2))
    assert first.to_str() == second.to_str()
    assert vocabulary_of(first).size == first.get_vocab_size() == padded_size(500, kind) == 512
    assert vocabulary_of(first).special == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_frame_round_trip_and_mask(kind: str) -> None:
    tokenizer = train_tokenizer(made_text(1000), kind, 512)
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
    text = (shared_data / "wikitext-2/wiki.valid.tokens").read_text()
    lines = [line for line in text.split("\n") if line.strip()][:800]
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
    with pytest.raises(UserError, match="--tokenizer-size 64: byte-level bpe needs at least 261"):
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


# What people write


SPELLINGS = {
    "Möchte": "möchte", "hacía": "hacía", "में": "में", "かぎ": "かぎ", "한국": "한국", "Çocuk": "çocuk", "Việt": "việt",
    "İSTANBUL": "i\u0307stanbul", "ΟΔΟΣ": "οδοσ", "ไทยก็": "ไทยก็", "שָׁלוֹם": "שָׁלוֹם", "кой": "кой", "Ångström": "ångström",
}  # fmt: skip
JOINED = ["می\u200cخواهم", "ක්\u200dෂ", "👩\u200d🌾", "soft\u00adhyphen", "right\u200fto\u200eleft", "word\u2060joiner"]


@pytest.mark.parametrize("kind", [*KINDS, "word"])
def test_lower_casing_keeps_marks_unless_they_are_to_go(kind: str) -> None:
    size = {"word": 64, "unigram": 64}.get(kind, 320)
    kept = train_tokenizer(made_text(300), kind, size, lowercase=True)
    gone = train_tokenizer(made_text(300), kind, size, lowercase=True, strip_accents=True)
    for word, lowered in SPELLINGS.items():
        assert kept.normalizer.normalize_str(word) == lowered
    for word, bare in {"Möchte": "mochte", "かぎ": "かき", "한국": "한국", "İSTANBUL": "istanbul", "में": "म"}.items():
        assert gone.normalizer.normalize_str(word) == bare


@pytest.mark.parametrize("kind", [*KINDS, "word"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_joiners_survive(kind: str, lowercase: bool) -> None:
    text = made_text(300) + JOINED * 5
    tokenizer = train_tokenizer(text, kind, {"word": 64}.get(kind, 320 if kind != "unigram" else 128), lowercase)
    for word in JOINED:
        if tokenizer.normalizer is not None:
            assert tokenizer.normalizer.normalize_str(word) == word
        if kind in ("bpe", "unigram"):
            assert tokenizer.decode(tokenizer.encode(word).ids) == word


def test_a_word_is_lower_cased_in_its_vocabulary_as_in_a_text() -> None:
    tokenizer = train_tokenizer(["ΟΔΟΣ οδος İZMİR Straße"], "word", 7, lowercase=True)
    v = vocabulary_of(tokenizer)
    assert v.unk not in tokenizer.encode("ΟΔΟΣ οδος İZMİR Straße").ids


LONG = {
    "protein": ("ACDEFGHIKLMNPQRSTVWY", 150), "dna": ("ACGT", 1200), "numbers": ("0123456789", 260),
    "thai": ("กขคงจชซดตถทนบปพมยรลวสหอ", 400), "mixed": ("abcDEF_-12", 101),
}  # fmt: skip


def letters(name: str, lines: int = 12, seed: int = 0) -> list[str]:
    alphabet, length = LONG[name]
    draw = random.Random(seed)
    return ["".join(draw.choices(alphabet, k=length)) for _ in range(lines)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LONG)
def test_a_long_word_is_never_unknown(kind: str, name: str) -> None:
    size = 320 if kind == "bpe" else 64
    tokenizer = train_tokenizer(letters(name), kind, size)
    unk = vocabulary_of(tokenizer).unk
    for text in letters(name, 5, seed=1):
        encoding = tokenizer.encode(text, add_special_tokens=False)
        assert unk not in encoding.ids
        covered = [at for begin, end in encoding.offsets for at in range(begin, end)]
        begun = kind == "unigram" and encoding.tokens[0] == "▁"  # the space that it puts before a text
        assert covered[begun:] == list(range(len(text))), "each character lies in exactly one token"


def test_one_long_line_is_learned_from_and_read_in_bounded_time() -> None:
    text = "".join(letters("protein", 400))
    pieces = [text[at : at + (1 << 16)] for at in range(0, len(text), 1 << 16)]
    for kind in KINDS:
        began = time.perf_counter()
        tokenizer = train_tokenizer(pieces, kind, 384)
        assert vocabulary_of(tokenizer).unk not in tokenizer.encode(pieces[0]).ids
        assert time.perf_counter() - began < 20


@pytest.mark.campaign
@pytest.mark.parametrize("kind", KINDS)
def test_ten_megabytes_without_a_space_are_bounded(kind: str) -> None:
    code = f"""
        import random, resource
        from jax_mlm.data.tokenizer import train_tokenizer
        random.seed(0)
        text = ["".join(random.choices("ACDEFGHIKLMNPQRSTVWY", k=1 << 16)) for _ in range(160)]
        train_tokenizer(text, "{kind}", 2048)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2e6
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=300)


def han(different: int, lines: int = 600, seed: int = 1) -> list[str]:
    draw = random.Random(seed)
    return ["".join(chr(0x4E00 + draw.randrange(different)) for _ in range(40)) for _ in range(lines)]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
@pytest.mark.parametrize("different", [700, 1500, 3000])
def test_the_alphabet_is_not_cut_while_there_is_room(kind: str, different: int) -> None:
    text = han(different)
    try:
        tokenizer = train_tokenizer(text, kind, 4096)
    except VocabularyTooLarge as error:
        tokenizer = train_tokenizer(text, kind, error.reachable)
    assert set("".join(text)) <= set(tokenizer.get_vocab())
    ids = tokenizer.encode("".join(text[:50])).ids
    assert vocabulary_of(tokenizer).unk not in ids


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_where_there_is_no_room_the_most_frequent_characters_stay(kind: str) -> None:
    text = [line + "的" * 5 for line in han(1500)]
    tokenizer = train_tokenizer(text, kind, 448)
    assert vocabulary_of(tokenizer).size == 448
    assert "的" in tokenizer.get_vocab()


TEXTS = {
    "han": han(900, 150), "few": ["ab ba"] * 3, "dna": letters("dna", 3), "prose": made_text(40), "one": ["a"],
    "emoji": ["👩\u200d🌾 👍🏽 🎉"] * 4, "hindi": ["मैं घर जा रहा हूँ और वह स्कूल जाती है"] * 4,
}  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "word"])
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("asked", [8192, 960, 300])
def test_what_a_refused_size_proposes_works(kind: str, name: str, asked: int) -> None:
    for _ in range(2):
        try:
            tokenizer = train_tokenizer(TEXTS[name], kind, asked)
        except UserError as error:
            asked = int(re.search(r"(?:choose --tokenizer-size|at least) (\d+)", str(error)).group(1))
            continue
        assert vocabulary_of(tokenizer).size >= asked
        return
    raise AssertionError(f"--tokenizer-size {asked} was proposed, and refused")


@pytest.mark.parametrize("kind", [*KINDS, "word"])
@pytest.mark.parametrize("special", ["bert", "roberta"])
def test_special_tokens_in_data_are_text_and_in_a_query_what_they_are(kind: str, special: str) -> None:
    names = SPECIAL[special]
    unk = next(name for name in names if name in NAMES["unk"])
    lines = [f"{line} <s>{line}</s> {' '.join(names)} [MASK] <mask> <pad>" for line in made_text(300)]
    tokenizer = train_tokenizer(lines, kind, {"word": 900, "unigram": 256}.get(kind, 512), special=special)
    v = vocabulary_of(tokenizer)
    controls = set(v.special) - {v.unk}
    text = f"bade {' '.join(name for name in names if name != unk)} <s>tuso</s> bade"
    tokens = encode(tokenizer, [text]).tokens.tolist()
    assert not controls & set(tokens)
    if kind != "word":  # each of its characters is in the vocabulary, so all of it has targets
        assert v.unk not in tokens
        offsets = as_text(tokenizer).encode(text, add_special_tokens=False).offsets
        covered = {at for begin, end in offsets for at in range(begin, end)}
        assert {at for at, character in enumerate(text) if character != " "} <= covered
    assert tokenizer.encode(f"bade {tokenizer.id_to_token(v.mask)} x", add_special_tokens=False).ids.count(v.mask) == 1
    plain = ["bade tuso bade", "Tuso."]
    assert [e.ids for e in as_text(tokenizer).encode_batch(plain)] == [e.ids for e in tokenizer.encode_batch(plain)]


@pytest.mark.parametrize("kind", KINDS)
def test_added_words_match_in_data_and_keep_their_ids(kind: str) -> None:
    tokenizer = train_tokenizer(made_text(300), kind, 256 if kind == "unigram" else 384)
    tokenizer.add_special_tokens(["<|user|>"])  # beyond the model's vocabulary, before the words
    tokenizer.add_tokens([AddedToken("Deniz", single_word=True), AddedToken("covid-19")])
    encoded = encode(tokenizer, ["bade Deniz covid-19 <|user|> tuso"]).tokens.tolist()
    assert {tokenizer.token_to_id("Deniz"), tokenizer.token_to_id("covid-19")} <= set(encoded)
    assert tokenizer.token_to_id("<|user|>") not in encoded
    assert tokenizer.encode("<|user|>").ids.count(tokenizer.token_to_id("<|user|>")) == 1


def test_published_tokenizers_read_their_special_tokens_as_text(shared_data) -> None:
    for name in ("bert-tiny-english", "roberta-antibody", "albert-reactions"):
        tokenizer = load_tokenizer(shared_data / "weights" / name / "tokenizer.json")
        v = vocabulary_of(tokenizer)
        marked = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special and id != v.unk}
        assert marked <= set(v.special), "where there are reserved pieces besides"
        text = " ".join(tokenizer.id_to_token(id) for id in marked)
        assert not marked & set(encode(tokenizer, [text]).tokens.tolist())
        plain = ["CC(=O)O the old river", "QVQLVQSG"]
        assert [e.ids for e in as_text(tokenizer).encode_batch(plain)] == [e.ids for e in tokenizer.encode_batch(plain)]


def test_letters_that_lose_their_accents_are_known_as_they_are_composed_again() -> None:
    texts = [f"나는 어제 서울에서 친구를 만났다 Möchte {n}" for n in range(60)]
    tokenizer = train_tokenizer(texts, "wordpiece", 64, lowercase=True, strip_accents=True)
    assert "[UNK]" not in tokenizer.encode(texts[0]).tokens
    assert tokenizer.normalizer.normalize_str("Möchte 서울") == "mochte 서울"
