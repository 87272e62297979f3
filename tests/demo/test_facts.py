"""What the page measures is what the predictor answers; and its parts of HTML hold it, escaped."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlm_onnx import FillMask, QueryError
from mlm_onnx.answer.attention import AttentionReader
from mlm_onnx.bundle.layout import EXAMPLES, BundleError
from mlm_onnx.bundle.read import open_bundle
from mlm_onnx.convert import Request, write_bundle
from mlm_onnx.convert.examples import PLAIN, examples_for
from mlm_onnx.demo import markup as demo_page
from mlm_onnx.demo.facts import MOST_WORDS, Asked, Facts, filled_in, strength
from mlm_onnx.demo.heatmap import COLOUR, png
from PIL import Image
from support.bundles import ONE_SHAPE, ORIGIN, SENTENCE_MODEL, piecewise
from support.models import randomised

from jax_mlm.data.tokenizer import train_tokenizer, vocabulary_of
from jax_mlm.presets import SENTENCE

TEXT = "This model creates a super relationships between the words"


def ask(facts: Facts, text: str, hidden: Sequence[int], top_k: int) -> Asked:
    return facts.ask(text, facts.words(text), hidden, top_k)


@pytest.fixture(scope="module")
def facts(sentence_bundles: dict[str, Path]) -> Facts:
    return Facts(FillMask(sentence_bundles["attention"]))


def test_words_and_masks_of_a_sentence(facts: Facts) -> None:
    words = facts.words("  This [MASK] creates zebras ")
    assert [(word.text, word.known, word.mask) for word in words] == [
        ("This", True, False),
        ("[MASK]", True, True),
        ("creates", True, False),
        ("zebras", False, False),
    ]
    assert all("  This [MASK] creates zebras "[word.start : word.end] == word.text for word in words)
    assert facts.hide("This model creates", facts.words("This model creates"), [2, 0]) == "[MASK] model [MASK]"


def test_answers_are_the_predictors(facts: Facts) -> None:
    asked = ask(facts, TEXT, [4, 2, 99, -1], 5)
    assert asked.masked == "This model [MASK] a [MASK] relationships between the words"
    assert asked.positions == (2, 4)
    assert list(asked.masks) == facts.fill(asked.masked, top_k=5)["masks"]
    tokens = [mask["candidates"][0]["token"] for mask in asked.masks]
    assert "".join(text for text, _ in filled_in(asked)) == asked.masked.replace("[MASK]", "{}").format(*tokens)
    assert [text for text, answer in filled_in(asked) if answer] == tokens


def test_reasons_are_the_predictors(facts: Facts) -> None:
    asked = ask(facts, TEXT, [2, 4], 2)
    explained = facts.fill.explain(asked.masked)["masks"]
    for why, mask, measured in zip(facts.why(asked), asked.masks, explained, strict=True):
        first, second = mask["candidates"]
        assert (why.token, why.probability, why.runner_up) == (first["token"], first["probability"], second["token"])
        assert [(each.word, each.effect, each.probability, each.instead) for each in why.influences] == [
            (each["word"], each["effect"], each["probability"], each["instead"]) for each in measured["words"]
        ]
        assert [each.position for each in why.influences] == [0, 1, 3, 5, 6, 7, 8]
        everything = facts.fill(asked.masked, top_k=13)["masks"][asked.masks.index(mask)]["candidates"]
        ranks = {each["token"]: rank for rank, each in enumerate(everything, 1)}
        assert why.rank == ranks[TEXT.split()[why.position]]
        assert why.choices == 13
        assert np.abs(strength(why.influences)).max() <= 1
        if why.together is not None:
            hidden = {*asked.positions, *(i.position for i in why.influences if i.word in why.together.words)}
            both = ask(facts, TEXT, sorted(hidden), 13)
            candidates = both.masks[both.positions.index(why.position)]["candidates"]
            assert why.together.instead == candidates[0]["token"]
            assert why.together.probability == next(c["probability"] for c in candidates if c["token"] == why.token)
    assert any(why.together for why in facts.why(asked)), "with random weights, answers depend on several words"


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_words_of_several_pieces(kind: str, tmp_path: Path) -> None:
    """Words stay words, whatever their pieces; each has its true position, and the sentence is filled in alike."""
    tokenizer = piecewise(kind)
    model = replace(SENTENCE_MODEL, vocab_size=tokenizer.get_vocab_size())
    write_bundle(tmp_path / "b", model, randomised(model), tokenizer, Request("fp32"), ORIGIN, ONE_SHAPE)
    facts = Facts(FillMask(tmp_path / "b"))
    text = "The cat, terdobanumi, was playing in the garden."
    words = facts.words(text)
    assert [word.text for word in words] == text.replace(",", " ,").replace(".", " .").split()
    long = next(position for position, word in enumerate(words) if word.text.startswith("terdo"))
    garden = max(position for position, word in enumerate(words) if word.text.startswith("garden"))
    for hidden in ([long], [garden]):
        asked = ask(facts, text, hidden, 2)
        assert "".join(part for part, _ in filled_in(asked)) == asked.masks[0]["candidates"][0]["text"]
    asked = ask(facts, text, [0, long], 2)
    first, second = facts.why(asked)
    assert second.rank is None
    assert len(second.original.ids) > 1
    for why in (first, second):
        assert [each.position for each in why.influences] == [at for at in range(len(words)) if at not in (0, long)]
        assert all(words[each.position].text == each.word for each in why.influences)


@pytest.mark.parametrize(
    ("text", "hidden", "said"),
    [
        ("", (), "empty"),
        ("This model", (), "no word is hidden"),
        ("This model", (0, 1), "every word is hidden"),
        ("[MASK] [MASK]", (), "nothing but"),
        ("a " * (MOST_WORDS + 1), (0,), "shorten it"),
    ],
)
def test_what_has_no_answer_says_why(facts: Facts, text: str, hidden: tuple[int, ...], said: str) -> None:
    with pytest.raises(QueryError, match=said):
        ask(facts, text, hidden, 3)


def test_many_masks_are_answered_but_not_explained(facts: Facts) -> None:
    asked = ask(facts, "a model creates words " * 8, range(20), 2)
    assert len(asked.masks) == 20
    with pytest.raises(QueryError, match="up to 16"):
        facts.why(asked)


# ---- parts of the page -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hidden", "top_k"), [(SENTENCE, (2,), 3), ("a & b = c + ü?#%20", (), 1), ("", (0, 5, 12), 13)]
)
def test_the_address_holds_the_page(text: str, hidden: tuple[int, ...], top_k: int) -> None:
    assert demo_page.from_query(demo_page.to_query(text, hidden, top_k), 3, 13) == (text, hidden, top_k)


def test_an_address_that_was_meddled_with() -> None:
    assert demo_page.from_query("", 3, 13) == (None, (), 3)
    assert demo_page.from_query("hide=1,x,-2,1,²,99999999&top=900", 3, 13) == (None, (1,), 13)
    assert demo_page.from_query("top=0&top=zero", 3, 13) == (None, (), 3)


def test_nothing_a_user_writes_becomes_html(facts: Facts) -> None:
    text = "<b>This</b> model creates 'a\" <img/src=x> words"
    asked = ask(facts, text, [1], 3)
    parts = [
        demo_page.chips(text, asked.words, asked.positions),
        demo_page.answers(asked, demo_page.to_query(text, [1], 3)),
        demo_page.reasons(asked, facts.why(asked)),
        demo_page.problem(text, text),
    ]
    for part in parts:
        assert "<b>" not in part
        assert "<img/src" not in part
        assert "'a\"" not in part
    assert "&lt;b&gt;This&lt;/b&gt;" in parts[0]


def test_a_heat_map_is_a_picture_of_its_weights(facts: Facts) -> None:
    weights = np.array([[0.0, 0.5, 1.0], [0.25, 0.25, 0.5]])
    picture = png(weights)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.size, image.mode) == ((3, 2), "RGBA")
        pixels = np.asarray(image)
    assert pixels[..., 3].tolist() == [[0, 128, 255], [64, 64, 128]]
    assert (pixels[..., :3] == COLOUR).all()
    read = facts.fill.reader.masked("This [MASK] creates")
    found = AttentionReader(facts.fill.bundle)(read)
    shown = demo_page.heat_map(found, ["This", "[MASK]", "creates"], [1], 2, None)
    row = found.weights[2].mean(0)[1]
    first = ["This", "[MASK]", "creates"][int(row.argmax())]
    assert f"Token 2 ([MASK]) looks most at “{first}” {100 * row.max():.1f} %" in shown


# ---- examples --------------------------------------------------------------------------------------


def test_examples_are_ones_that_the_vocabulary_reads() -> None:
    words = train_tokenizer([SENTENCE], "word", 16)
    assert examples_for(words, vocabulary_of(words)) == []
    assert examples_for(words, vocabulary_of(words), memorised=SENTENCE) == [SENTENCE]
    assert examples_for(words, vocabulary_of(words), ["my own"], SENTENCE) == ["my own"]
    plain = train_tokenizer(list(PLAIN), "word", 42)
    assert examples_for(plain, vocabulary_of(plain)) == list(PLAIN)
    with pytest.raises(BundleError, match="--example"):
        examples_for(words, vocabulary_of(words), [" "])
    with pytest.raises(BundleError, match=f"up to {EXAMPLES}"):
        examples_for(words, vocabulary_of(words), ["a"] * (EXAMPLES + 1))


def test_examples_of_a_manifest_that_lies(sentence_bundles: dict[str, Path]) -> None:
    bundle = open_bundle(sentence_bundles["int8"])
    for given, found in ((3, ()), (["a", 5, " ", "x" * 1000], ("a",)), (None, ()), (["a"] * 20, ("a",) * EXAMPLES)):
        bundle.manifest["examples"] = given
        assert bundle.examples() == found
