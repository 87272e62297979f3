"""Labels and tokens belong together by offsets: nothing is cut, lost or predicted twice."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mlm_onnx.answer import windows
from support.tokenizers import Watched
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from jax_mlm.data import align
from jax_mlm.data.align import Frame, Unit, frame_of, lay_texts, lay_words, spread, tags_of
from jax_mlm.data.conll import entities_of
from jax_mlm.data.labelled import pack_windows
from jax_mlm.data.labels import Example, Span
from jax_mlm.data.tokenizer import Kind, VocabularyTooLarge, train_tokenizer
from jax_mlm.errors import UserError

TEXT = ["Angela Merkel met Émile in New York, on Monday: it's #1!", "the plain words of a longer text in between"] * 8
KINDS: tuple[Kind, ...] = ("wordpiece", "bpe", "unigram")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    try:
        return train_tokenizer(TEXT, request.param, 320)
    except VocabularyTooLarge as error:
        return train_tokenizer(TEXT, request.param, error.reachable)


def examples(count: int = 40) -> Iterator[Example]:
    """Yield texts of words joined by spaces, with entities of whole words."""
    rng, words = np.random.default_rng(0), TEXT[0].replace(",", " ,").replace(":", " :").split()
    for number in range(count):
        chosen = [str(word) for word in rng.choice(words, rng.integers(1, 30))]
        ends = np.cumsum([len(word) + 1 for word in chosen])
        starts = ends - [len(word) + 1 for word in chosen]
        text, spans, at = " ".join(chosen), [], 0
        while at < len(chosen):
            size = int(rng.integers(1, 4))
            if rng.random() < 0.4:
                last = min(at + size, len(chosen)) - 1
                spans.append(Span(int(starts[at]), int(ends[last]) - 1, str(rng.choice(["a", "b-c"]))))
            at += size
        yield Example(f"file, line {number}", text, spans=tuple(spans))


@pytest.mark.parametrize("length", [24, 256])
def test_entities_of_whole_words_come_back_exactly(tokenizer: Tokenizer, length: int) -> None:
    drawn = list(examples())
    laid = lay_words(tokenizer, drawn, length, length // 4)
    tags, remarks = tags_of(drawn, laid.units)
    assert remarks == ()
    for example, words, mine in zip(drawn, laid.units, tags, strict=True):
        found = [Span(words[a].start, words[b - 1].end, label) for a, b, label in entities_of(mine)]
        assert found == list(example.spans or ())
    assert sorted(laid.windows.items) == list(range(sum(map(len, laid.units))))  # each word once, windows or not
    assert bool(laid.remarks) == (length == 24)


def test_entities_within_a_word_are_counted_with_their_line(tokenizer: Tokenizer) -> None:
    given = [
        Example("f, line 1", "pre-York", spans=(Span(5, 7, "a"),)),
        Example("f, line 2", "York", spans=(Span(0, 2, "a"), Span(2, 4, "b"))),
    ]
    laid = lay_words(tokenizer, given, 32, 4)
    remarks = tags_of(given, laid.units).remarks
    assert any("f, line 1: 'or'" in remark for remark in remarks)
    assert len(remarks) == 2 or not remarks[0].startswith("1 ")


def test_windows_cover_a_text_with_at_least_the_overlap() -> None:
    for tokens in range(60):
        for room, overlap in ((10, 0), (10, 3), (11, 5)):
            parts = spread(tokens, room, overlap)
            assert {at for a, b in parts for at in range(a, b)} == set(range(tokens))
            assert all(b - a <= room for a, b in parts)
            assert all(b - c >= overlap for (_, b), (c, _) in itertools.pairwise(parts))
            assert len(parts) == 1 or all(b - a == room for a, b in parts)


class Counted(list[tuple[int, int]]):
    """Windows that count how often one of them is looked at."""

    looks = 0

    def __getitem__(self, i: Any) -> Any:
        self.looks += 1
        return super().__getitem__(i)


@pytest.mark.parametrize("words_at_home", [align.words_at_home, windows.words_at_home])
def test_a_word_is_asked_about_where_it_is_farthest_from_an_edge(words_at_home: Any) -> None:
    def distance(at: int, parts: list[tuple[int, int]], i: int) -> float:
        a, b = parts[i]
        if not a <= at < b:
            return -1
        return min(at - a if i else np.inf, b - 1 - at if i < len(parts) - 1 else np.inf)

    rng = np.random.default_rng(0)
    for _ in range(300):
        room, tokens = int(rng.integers(2, 30)), int(rng.integers(0, 200))
        parts = spread(tokens, room, int(rng.integers(0, (room + 1) // 2)))
        opens = np.flatnonzero(rng.random(tokens) < 0.8).tolist()
        home = [max(range(len(parts)), key=lambda i, at=at: distance(at, parts, i)) for at in opens]
        expected = [[k for k in range(len(opens)) if home[k] == i] for i in range(len(parts))]
        assert words_at_home(opens, parts) == expected
    parts = Counted(spread(5000, 10, 4))
    words_at_home(range(5000), parts)
    assert parts.looks < 4 * 5000  # those that hold the word, however many there are


def test_the_tokens_of_a_long_text_are_not_copied_for_each_window(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, encoded = Counter[str](), align.encoded
    monkeypatch.setattr(align, "encoded", lambda *given: (Watched(each, copies) for each in encoded(*given)))
    assert len(lay_words(tokenizer, [Example("f", " ".join(TEXT))], 16, 4).windows.first) > 10
    assert max(copies.values()) < 4


def test_the_words_of_an_entity_are_those_that_it_touches() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        words, spans = (
            [(int(a), int(b)) for a, b in np.sort(rng.choice(60, 2 * int(rng.integers(0, 12)), False)).reshape(-1, 2)]
            for _ in range(2)
        )
        example = Example("f", "x" * 60, spans=tuple(Span(a, b, "x") for a, b in spans))
        expected = ["O"] * len(words)
        for start, end in spans:
            free = [k for k, (a, b) in enumerate(words) if a < end and start < b and expected[k] == "O"]
            for k in free:
                expected[k] = "B-x" if k == free[0] else "I-x"
        assert tags_of([example], [[Unit(*word) for word in words]]).tags == [expected]


def test_a_text_is_framed_as_its_tokenizer_frames_it(tokenizer: Tokenizer) -> None:
    given = [Example("f", "New York"), Example("f", "")]
    w = lay_texts(tokenizer, given, False, 32, 4).windows
    for number, example in enumerate(given):
        assert w.tokens[w.first[number] : w.first[number + 1]].tolist() == tokenizer.encode(example.text).ids
    pairs = [Example("f", "New York", "it's on Monday"), Example("f", "Émile", "")]
    w = lay_texts(tokenizer, pairs, True, 64, 4).windows
    for number, example in enumerate(pairs):
        theirs = tokenizer.encode(example.text, example.pair)
        assert w.tokens[w.first[number] : w.first[number + 1]].tolist() == theirs.ids
        assert w.types[w.first[number] : w.first[number + 1]].tolist() == theirs.type_ids


def test_windows_of_a_text_weigh_one_together_and_no_token_is_lost(tokenizer: Tokenizer) -> None:
    given = [Example("f, line 7", " ".join(TEXT)), Example("f", "it's", " ".join(TEXT))]
    for pair in (False, True):
        these = given[1:] if pair else given[:1]
        laid = lay_texts(tokenizer, these, pair, 32, 4)
        assert "1 texts are longer than" in laid.remarks[0]
        w = laid.windows
        assert w.shares.sum() == pytest.approx(1)
        assert max(np.diff(w.first)) <= 32
        whole = tokenizer.encode(these[0].text, these[0].pair).ids
        assert set(w.tokens.tolist()) == set(whole)


def test_the_frame_of_a_pair_is_found_by_a_word_that_the_tokenizer_knows() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[CLS]": 0, "[SEP]": 1, "A": 2}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 0), ("[SEP]", 1)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    tokenizer.normalizer = normalizers.Replace("a", "")
    assert frame_of(tokenizer, False) == Frame([0], [], [1], (0, 0, 0))
    assert frame_of(tokenizer, True) == Frame([0], [1], [1], (0, 0, 1))
    tokenizer.normalizer = normalizers.Replace(Regex("."), "")
    for pair in (False, True):
        with pytest.raises(UserError, match="reads no plain text"):
            frame_of(tokenizer, pair)


@pytest.mark.parametrize(
    ("length", "overlap", "message"), [(3, 0, "--length 3"), (20, 9, "--overlap 9"), (20, -1, "--overlap -1")]
)
def test_too_short_windows_are_refused(tokenizer: Tokenizer, length: int, overlap: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lay_texts(tokenizer, [Example("f", "x")], False, length, overlap)


def test_a_tokenizer_without_a_frame_tags_words_but_classifies_no_text() -> None:
    tokenizer = train_tokenizer(TEXT, "word", 16)
    with pytest.raises(UserError, match="no special token before a text"):
        lay_texts(tokenizer, [Example("f", "York")], False, 32, 0)
    assert lay_words(tokenizer, [Example("f", "in York")], 32, 0).windows.at.tolist() == [0, 1]


def test_rows_hold_whole_windows_each_once(tokenizer: Tokenizer) -> None:
    drawn = list(examples())
    laid = lay_words(tokenizer, drawn, 48, 8)
    targets = np.arange(len(laid.windows.items))
    rows = pack_windows(laid.windows, targets, np.ones(len(targets), np.float32), 48, pad=0)
    batch = rows.gather(np.arange(len(rows) + 1))
    assert not batch.segments[-1].any()  # past the end: padding
    w = laid.windows
    pieces = {tuple(w.tokens[a:b]) for a, b in itertools.pairwise(w.first)}
    seen = 0
    for tokens, segments, positions in zip(batch.tokens, batch.segments, batch.positions, strict=True):
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            assert tuple(tokens[inside]) in pieces
            assert positions[inside].tolist() == list(range(inside.sum()))
            seen += 1
    assert seen == len(w.first) - 1
    used = batch.items >= 0
    assert sorted(batch.items[used]) == sorted(w.items)
    np.testing.assert_array_equal(batch.targets[used], batch.items[used])
    assert (batch.weights[used] == 1).all()
    assert (batch.weights[~used] == 0).all()
    at = batch.tokens[np.nonzero(used)[0], batch.at[used]]
    expected = dict(zip(w.items, w.tokens[np.repeat(w.first[:-1], np.diff(w.first_slot)) + w.at], strict=True))
    assert at.tolist() == [expected[item] for item in batch.items[used]]
    assert len(rows) * 48 < 1.5 * len(w.tokens)
