"""Pseudo-log-likelihoods: equal to one query a token, whatever is scored together, and nothing in a text is skipped."""

import itertools
import math
import re
from functools import cache

import jax
import numpy as np
import pytest
from mlm_onnx import FillMask
from mlm_onnx.answer.predictor import FillMask as Predictor
from mlm_onnx.answer.words import left_out
from support.models import randomised
from support.paths import ROOT
from support.scripts import SCRIPTS, lines_of
from support.tokenizers import MADE, reader_of
from tokenizers import Regex, pre_tokenizers

from jax_mlm.config import ModelConfig
from jax_mlm.data.tokenizer import as_text, load_tokenizer, vocabulary_of
from jax_mlm.evals.likelihood import Copies, make_scorer, read_texts, width_of
from jax_mlm.evals.text import Corpus, Scored
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import make_forward
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run

MODEL = ModelConfig(vocab_size=400, width=16, layers=1, heads=2, ff_width=24, max_length=48)
METHODS = ("original", "word-l2r")
TEXTS = (
    "the cats sat here,and def(today)",
    "The cat",
    "xyz q_2 cat's sat. Then",
    "a-b the  the",
    "ünïmet 我爱 Ω today",
)
GOLDEN = ROOT / "tests" / "golden"


@cache
def params():
    return jax.device_put(jax.tree.map(lambda x: 0.7 * x if x.ndim == 2 else x, randomised(MODEL)))


@cache
def forward():
    return jax.jit(make_forward(MODEL))


def one_at_a_time(ids: list[int], framing: list[int], words: list[int], mask: int) -> dict[str, float]:
    """Hide one token at a time, and ask the model about it: the definition, as a loop."""
    total = dict.fromkeys(METHODS, 0.0)
    for at in (i for i in range(len(ids)) if not framing[i]):
        for method in METHODS:
            row = np.zeros((1, MODEL.max_length), np.int32)
            row[0, : len(ids)] = ids
            later = [i for i in range(at + 1, len(ids)) if words[i] == words[at]] if method == "word-l2r" else []
            row[0, [at, *later]] = mask
            inside = (np.arange(row.shape[1]) < len(ids)).astype(np.int32)[None]
            inputs = Inputs(row, inside, np.arange(row.shape[1], dtype=np.int32)[None])
            logits = np.asarray(forward()(params(), inputs, np.array([[at]])))[0, 0].astype(np.float64)
            total[method] += logits[ids[at]] - math.log(np.exp(logits).sum())
    return total


def words_by_hand(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Number the tokens by the run of letters in which their first character stands, or the one after a lone space."""
    runs = [match.span() for match in re.finditer(r" ?[^\W我爱]+|.", text)]
    numbers = []
    for at, (start, end) in enumerate(offsets):
        here = next((i for i in range(start, end) if text[i] != " "), start)
        numbers.append(next((n for n, (a, b) in enumerate(runs) if a <= here < b and end > start), -1 - at))
    return numbers


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "unigram", "llama", "end of word", "characters", "words"])
def test_scores_equal_one_query_a_token(kind):
    tokenizer = MADE[kind]()
    vocabulary, reader = vocabulary_of(tokenizer), as_text(tokenizer)
    scores = make_scorer(tokenizer, MODEL, params(), METHODS, 256)(TEXTS)
    for text, score in zip(TEXTS, scores, strict=True):
        found = reader.encode(text)
        framing = found.special_tokens_mask
        expected = one_at_a_time(found.ids, framing, words_by_hand(text, found.offsets), vocabulary.mask)
        assert score.pll == pytest.approx(expected, abs=1e-5)
        assert score.tokens == len(found.ids) - sum(framing), "unknown tokens count, and the frame does not"
        assert score.unknown == found.ids.count(vocabulary.unk)
    if kind in ("wordpiece", "words", "unigram"):
        assert scores[4].unknown


def test_a_method_alone_gives_what_both_give():
    tokenizer = MADE["wordpiece"]()
    both = make_scorer(tokenizer, MODEL, params(), METHODS, 256)(TEXTS)
    for method in METHODS:
        alone = make_scorer(tokenizer, MODEL, params(), (method,), 256)(TEXTS)
        assert [score.pll for score in alone] == [
            {method: pytest.approx(score.pll[method], abs=1e-5)} for score in both
        ]
    assert any(abs(score.pll["original"] - score.pll["word-l2r"]) > 0.1 for score in both)


def test_what_is_scored_together_changes_no_score():
    tokenizer = MADE["byte-level"]()
    texts = [" ".join(words) for words in itertools.permutations(("the", "cats", "sat", "met"), 3)]
    texts += [f"{text} and {text}" for text in texts] + list(TEXTS)
    score = make_scorer(tokenizer, MODEL, params(), METHODS, 256)
    together = score(texts)
    assert score(texts[::-1])[::-1] == together, "the same shapes, and so the same bits"
    assert [score([text])[0] for text in texts[::9]] == together[::9]
    fewer = make_scorer(tokenizer, MODEL, params(), METHODS, 48)(texts)
    for one, other in zip(fewer, together, strict=True):
        assert one.pll == pytest.approx(other.pll, abs=1e-5)
        assert one[1:] == other[1:]


def test_texts_of_the_same_tokens_get_the_same_score_to_the_last_bit():
    score = make_scorer(MADE["words"](), MODEL, params(), METHODS, 48)
    known, one, other, again = score(["the cat sat", "the dog sat", "the cow sat", "the cat sat"])
    assert one == other, "both words are unknown"
    assert known == again != one


def test_rows_are_little_longer_than_their_texts_and_few_shapes_are_compiled():
    sizes = np.arange(1, 2000)
    widths = width_of(sizes)
    assert (widths >= sizes).all()
    assert (widths <= np.maximum(8, 1.5 * sizes)).all()
    assert len(set(width_of(np.arange(1, 513)).tolist())) == 13


def test_a_long_text_is_scored_in_windows_around_each_token():
    """Each row is the middle of the text around its token, between the frame; a word is hidden as far as it is seen."""
    tokenizer = MADE["characters"]()
    reader, vocabulary = as_text(tokenizer), vocabulary_of(tokenizer)
    text = "the cat sat " * 9
    read = read_texts(reader, ["the cat", text])
    first, inner = int(read.first[1]), read.inner[1].tolist()
    ids, room = read.tokens[inner[0] : inner[1]], MODEL.max_length - 2
    at = np.arange(*inner)
    copies = Copies(read, at, read.ends[at])
    rows, sizes, asked, targets = copies.batch(
        np.arange(len(at)), np.ones(len(at), int), MODEL.max_length, MODEL.max_length, vocabulary
    )
    assert first + 1 == inner[0]
    assert (sizes == MODEL.max_length).all()
    for position, row in enumerate(rows):
        begin = min(max(0, position + 1 - room // 2 - 1), len(ids) - room)
        hidden = ids[begin : begin + room].copy()
        end = text.find(" ", position) if text[position] != " " else position + text[position + 1 :].find(" ") + 1
        hidden[position - begin : max(end, position + 1) - begin] = vocabulary.mask
        if text[position] != " ":
            assert row[1:-1].tolist() == hidden.tolist()
        assert [row[0], row[-1]] == [vocabulary.cls, vocabulary.sep]
        assert (asked[position], targets[position]) == (position - begin + 1, ids[position])
    (score,) = make_scorer(tokenizer, MODEL, params(), METHODS, 256)([text])
    assert score.tokens == len(ids)


def test_corpus_figures_by_hand():
    text, other = "zwei Wörter", "one more here"
    scored = [
        Scored(text, make_score(-8.0, 3, 1)),
        Scored(other, make_score(-12.0, 4, 0)),
    ]
    figures = Corpus().plus(scored[0]).plus(scored[1]).figures()
    assert {name: figures[name] for name in ("documents", "tokens", "unknown", "words", "bytes")} == {
        "documents": 2, "tokens": 7, "unknown": 1, "words": 5, "bytes": 12 + 13,
    }  # fmt: skip
    assert figures["methods"]["original"] == {
        "pll": -20.0,
        "perplexity_per_word": pytest.approx(math.exp(20 / 5)),
        "bits_per_byte": pytest.approx(20 / math.log(2) / 25),
    }


def make_score(pll, tokens, unknown):
    from jax_mlm.evals.likelihood import Score

    return Score({"original": pll}, tokens, unknown)


# ---- the same in both packages --------------------------------------------------------------------

MANY = (
    "abcdefghij" * 5,
    "x" * 41 + " the",
    f"the {'ab' * 30}, cat",
    *TEXTS,
    "_a_ b__c 3.14 1,000",
    "\u200c می\u200cخواهم",
)


@pytest.mark.parametrize("kind", list(MADE))
def test_both_packages_find_the_same_words(kind, tmp_path):
    tokenizer = MADE[kind]()
    reader = reader_of(tokenizer, tmp_path)
    lines = [*MANY, *(line for name in SCRIPTS for line in lines_of(name, 2, seed=4))]
    read = read_texts(tokenizer, lines)
    for number, line in enumerate(lines):
        theirs = reader.encode(line)
        mine = slice(*read.inner[number])
        ends = Predictor._ends(theirs, np.arange(theirs.frame[0], len(theirs.ids) - theirs.frame[1]), within_word=True)
        assert (read.ends[mine] - read.first[number]).tolist() == ends.tolist(), line
        assert read.left_out[number] == left_out(line, theirs.offsets) == 0


def test_a_bundle_scores_as_its_run_does():
    run = GOLDEN / "run"
    score = make_scorer(load_tokenizer(run / "tokenizer.json"), read_run(run).model, load_params(run)[1], METHODS, 2048)
    fill = FillMask(GOLDEN / "bundle-fp32", threads=1)
    texts = [
        "the baker sells some warm bread in the market.",
        "my sister mends clayjars, unheard-of ones 我",
        "Ω Ω the baker sells bread",
    ]
    texts.append(" ".join([*texts, "the sisters of the bakers"] * 6))
    for text, theirs in zip(texts, score(texts), strict=True):
        for method, within_word in zip(METHODS, (False, True), strict=True):
            mine = fill.score(text, within_word=within_word)
            assert mine["score"] == pytest.approx(theirs.pll[method], abs=1e-4 * theirs.tokens)
            assert (len(mine["tokens"]), mine["unknown"]) == (theirs.tokens, theirs.unknown)
    assert [score["score"] for score in fill.score(texts, within_word=True)] == pytest.approx(
        [fill.score(text, within_word=True)["score"] for text in texts], abs=1e-4
    )


def test_what_a_tokenizer_leaves_out_counts_as_unknown():
    tokenizer = MADE["wordpiece"]()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z]+"), "removed", invert=True)
    score = make_scorer(tokenizer, MODEL, params(), METHODS, 256)
    known, garbage = score(["the cat, sat", "the Ωж 我爱 ... 42ж sat"])
    assert (known.tokens, known.unknown) == (3, 0)
    assert (garbage.tokens, garbage.unknown) == (2, 3)
    assert left_out("the Ωж 我爱 ... 42ж sat", [(0, 3), (18, 21)]) == 3


def test_garbage_of_unknown_words_does_not_win_because_it_is_skipped():
    run = GOLDEN / "run"
    tokenizer = load_tokenizer(run / "tokenizer.json")
    score = make_scorer(tokenizer, read_run(run).model, load_params(run)[1], METHODS, 2048)
    sentence = "the baker sells some warm bread in the market"
    garbage = " ".join(["我", "Ω", "ж", "£"] * 2 + ["我"])
    good, bad = score([sentence, garbage])
    assert bad.unknown == bad.tokens == len(garbage.split())
    for method in METHODS:
        assert good.pll[method] > bad.pll[method]
