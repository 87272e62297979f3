"""The table of scripts: two dozen of them, with each kind of tokenizer, from the training text to the filled answer."""

from __future__ import annotations

import unicodedata
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from mlm_onnx.answer.explain import words_of
from mlm_onnx.answer.pieces import Pieces
from mlm_onnx.answer.reader import Reader
from mlm_onnx.answer.words import UNSPACED as UNSPACED_HERE
from mlm_onnx.answer.words import is_word
from support.scripts import SCRIPTS, UNSPACED
from support.scripts import lines_of as made_lines
from support.tokenizers import reader_of
from tokenizers import Encoding, Tokenizer

from jax_mlm.data import encoding
from jax_mlm.data.encoding import encode
from jax_mlm.data.tokenizer import VocabularyTooLarge, train_tokenizer, vocabulary_of

KINDS = ("wordpiece", "bpe", "unigram", "word")
TRAINED, TRIED = 300, 40
MOST_UNKNOWN = 0.005
SIZES = {"wordpiece": 384, "bpe": 448, "unigram": 256, "word": 4096}
TABLE = [(name, kind) for name in SCRIPTS for kind in KINDS]
lines_of = cache(made_lines)


@cache
def tokenizer_of(name: str, kind: str, trained: int = TRAINED) -> Tokenizer:
    """A tokenizer of what the text supports, as `train` makes one."""
    lines = lines_of(name, trained, seed=0)
    try:
        return train_tokenizer(lines, kind, SIZES[kind])  # type: ignore[arg-type]
    except VocabularyTooLarge as error:
        return train_tokenizer(lines, kind, error.reachable)  # type: ignore[arg-type]


@cache
def tried(name: str) -> list[str]:
    known = set(lines_of(name, TRAINED, seed=0))
    return [line for line in lines_of(name, TRIED, seed=1) if line not in known]


def unknown_share(tokenizer: Tokenizer, lines: list[str]) -> float:
    tokens = encode(tokenizer, lines).tokens
    return float((tokens == vocabulary_of(tokenizer).unk).mean())


@pytest.mark.parametrize(("name", "kind"), TABLE)
def test_a_script_is_known_and_comes_back(name: str, kind: str) -> None:
    check_known(kind, tokenizer_of(name, kind), lines_of(name, TRAINED, seed=0) if kind == "word" else tried(name))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), TABLE)
def test_more_text_of_a_script_is_known_and_comes_back(name: str, kind: str) -> None:
    trained = 3 * TRAINED
    lines = lines_of(name, trained, seed=0) if kind == "word" else lines_of(name, 5 * TRIED, seed=2)
    check_known(kind, tokenizer_of(name, kind, trained), lines)


def check_known(kind: str, tokenizer: Tokenizer, lines: list[str]) -> None:
    assert unknown_share(tokenizer, lines) <= (0 if kind == "word" else MOST_UNKNOWN)
    for line in lines:
        found = tokenizer.encode(line, add_special_tokens=False)
        held = [0] * len(line)
        for first, last in whole_characters(found):
            for at in range(first, last):
                held[at] += 1
        assert all(count == 1 for count, character in zip(held, line, strict=True) if not character.isspace()), line
        if kind in ("bpe", "unigram"):
            assert tokenizer.decode(found.ids) == line


def whole_characters(encoding: Encoding) -> list[tuple[int, int]]:
    """Return the characters of each token; bytes of one character are one token, a space put before a text is none."""
    found: list[tuple[int, int]] = []
    spans = [span for span, token in zip(encoding.offsets, encoding.tokens, strict=True) if token != "▁"]
    for start, end in spans:
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


@pytest.mark.parametrize(("name", "kind"), TABLE)
def test_whole_words_are_whole(name: str, kind: str) -> None:
    """A word that is set apart by spaces is one word of the masks; elsewhere each token is, and no character is cut."""
    tokenizer, lines = tokenizer_of(name, kind), tried(name)
    encoded = encode(tokenizer, lines)
    begins = np.split(encoded.begins, np.cumsum(encoded.lengths)[:-1])
    words = {*SCRIPTS[name].words} if SCRIPTS[name].space else set()
    words = [word for word in words if all(map(is_word, word))]
    for line, starts in zip(lines, begins, strict=True):
        spans = np.array(tokenizer.encode(line, add_special_tokens=False).offsets)
        for index in np.flatnonzero(~starts):
            before, here = line[spans[index - 1, 0] : spans[index - 1, 1]], line[spans[index, 0] : spans[index, 1]]
            shared = spans[index, 0] < spans[index - 1, 1]
            assert shared or (is_word(here[:1]) and (before == " " or is_word(before[-1:])))
        cuts = set(spans[starts, 0].tolist())
        for word in words:
            at = line.find(f" {word} ")
            assert at < 0 or not cuts & set(range(at + 2, at + 1 + len(word))), (line, word)


@pytest.fixture(scope="module")
def reader_in(tmp_path_factory: pytest.TempPathFactory):
    @cache
    def reader(name: str, kind: str) -> Reader:
        return reader_of(tokenizer_of(name, kind), tmp_path_factory.mktemp("reader"))

    return reader


@pytest.mark.parametrize(("name", "kind"), TABLE)
def test_a_script_is_answered_and_explained(name: str, kind: str, reader_in) -> None:
    tokenizer, reader = tokenizer_of(name, kind), reader_in(name, kind)
    pieces, script = Pieces(tokenizer), SCRIPTS[name]
    for word in dict.fromkeys(script.words):
        spaced = tokenizer.encode(f"{script.words[0]}{script.space}{word}", add_special_tokens=False).ids
        alone = tokenizer.encode(word, add_special_tokens=False).ids
        if len(alone) == 1 and alone[0] != vocabulary_of(tokenizer).unk:
            assert pieces.of(word, "") == alone, "a word that is one token can be asked for"
            assert len(pieces.of(word)) == 1, spaced
    left, right = script.words[0], script.words[1]
    for gap in (script.space, "\n"):
        text = f"{left}{gap}[MASK]{script.space}{right}"
        query = reader.masked(text)
        ((start, end),) = query.spans
        for id in list(dict.fromkeys(encode(tokenizer, tried(name)).tokens.tolist()))[:60]:
            filled = pieces.fill(text, start, end, id)
            around = {text[:start], f"{text[:start]} ", text[:start].removesuffix(" ")}
            surface = pieces.surface(id)
            assert any(filled == f"{before}{surface}{text[end:]}" for before in around), (filled, surface)
    for line in tried(name)[:5]:
        hidden = words_of(reader.masked(f"{line} [MASK]"))
        shown = [line[word.start : word.end] for word in hidden]
        apart = {*"".join(line.split())} - {*"".join(shown)}
        assert not apart, apart
        assert not any(character.isspace() for word in shown for character in word.strip())
        if not script.space:  # each token is one, with the bytes that it shares a character with
            query = reader.masked(f"{line} [MASK]")
            for word in hidden:
                ends = [query.offsets[at] for at in word.positions]
                assert all(here[0] < before[1] or line[before[0]] == " " for before, here in pairwise(ends)), shown


@pytest.mark.parametrize("name", UNSPACED)
def test_words_without_spaces_do_not_fit_every_script(name: str) -> None:
    """A word tokenizer knows next to nothing of lines it was not trained on: the program must warn."""
    assert unknown_share(tokenizer_of(name, "word"), tried(name)) > 0.5


def test_the_scripts_without_spaces_are_those_of_training() -> None:
    assert UNSPACED_HERE == encoding.UNSPACED
    for character in map(chr, range(0x20, 0x30000, 7)):
        if unicodedata.category(character) != "Cs":
            assert is_word(character) == (encoding._kind(ord(character)) == encoding.WORD), hex(ord(character))
