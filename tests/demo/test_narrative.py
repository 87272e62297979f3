"""What the page says in words is what was measured, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mlm_onnx.bundle.about import about, memorised
from mlm_onnx.demo.facts import Influence, Together, Why, Word
from mlm_onnx.demo.narrative import confidence, explanation, percent, unknown

RIVER, OLD, THE = (
    Influence("river", 4, 1.2, 0.21, "road"),
    Influence("old", 1, 0.3, 0.52, "boat"),
    Influence("the", 0, -0.2, 0.86, "boat"),
)
WHY = Why(
    position=2,
    token="boat",
    probability=0.7,
    runner_up="ship",
    runner_up_probability=0.1,
    original=Word("ship", 8, 12, (7,), True),
    rank=2,
    original_probability=0.1,
    choices=5000,
    influences=(THE, OLD, RIVER),
    together=Together(("old", "river"), 0.05, True, "car", 0.2),
    window=None,
)


def test_every_sentence_of_an_explanation() -> None:
    assert explanation(WHY) == [
        "“boat” gets 70.0 %, the runner-up “ship” 10.0 %: 7.0 times less.",
        "The hidden word was “ship”: rank 2 of 5,000, with 10.0 %.",
        "It depends most on “river” and “old”.",
        "Without “river”, “boat” falls from 70.0 % to 21.0 %, and “road” comes first instead.",
        "Without “old”, “boat” falls from 70.0 % to 52.0 %, and still comes first.",
        "Without both, “boat” has 5.0 %, and “car” comes first with 20.0 %.",
        "“the” speaks against it: without that word “boat” rises from 70.0 % to 86.0 %.",
    ]


def test_an_answer_that_depends_on_no_word() -> None:
    small = tuple(replace(each, effect=0.01, probability=0.69) for each in (THE, OLD))
    said = explanation(replace(WHY, influences=small, together=None, original=None, window=(10, 1200)))
    assert (
        said[1]
        == "It depends on no single word: whichever other one is hidden, “boat” keeps at least 69.0 % (without “the”)."
    )
    assert (
        said[2]
        == "The text is longer than the model reads at once: for this answer it saw characters 10 to 1,200 of it."
    )
    assert len(said) == 3
    assert len(explanation(replace(WHY, influences=(), together=None))) == 2, "a lone mask depends on nothing"


def test_a_word_that_stands_twice_is_named_with_its_position() -> None:
    twice = replace(WHY, influences=(replace(OLD, word="river"), RIVER), together=None)
    assert "It depends most on “river” (word 5) and “river” (word 2)." in explanation(twice)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (0.9975, 0.0005, "about 2,000 times less"),
        (0.5, 0.04, "about 10 times less"),
        (0.5, 0.25, "2.0 times less"),
        (0.30, 0.29, "hardly prefers one"),
        (0.99999, 1e-9, "over 100,000 times less"),
    ],
)
def test_confidence_against_the_runner_up(first: float, second: float, said: str) -> None:
    assert said in confidence(replace(WHY, probability=first, runner_up_probability=second))


def test_the_original_word() -> None:
    right = replace(WHY, rank=1, original=Word("boat", 8, 12, (3,), True))
    assert "The hidden word was “boat”: rank 1 of 5,000, the answer is right." in explanation(right)
    cut = replace(WHY, rank=None, original=Word("motorboat", 8, 17, (3, 4, 5), True))
    assert "“motorboat” is 3 pieces in the model's vocabulary" in explanation(cut)[1]
    strange = replace(WHY, rank=None, original=Word("xyzzy", 8, 13, (1,), False))
    assert "“xyzzy” is not in the model's vocabulary" in explanation(strange)[1]


def test_together_says_what_it_knows() -> None:
    bound = replace(WHY, together=Together(("old", "river"), 0.001, False, "car", 0.2))
    assert "Without both, “boat” has at most 0.10 %, and “car” comes first with 20.0 %." in explanation(bound)
    same = replace(WHY, together=Together(("old", "river"), 0.6, True, "boat", 0.6))
    assert "Without both, “boat” still comes first, with 60.0 %." in explanation(same)


def test_percentages_never_claim_certainty() -> None:
    found = [percent(p) for p in (1.0, 0.99994, 0.9975, 0.123, 0.005, 0.00011, 1e-9)]
    assert found == ["over 99.99 %", "99.99 %", "99.75 %", "12.3 %", "0.50 %", "0.01 %", "under 0.01 %"]


def test_a_memorised_sentence_is_called_that() -> None:
    said = memorised({"origin": {"memorised": "a b c"}})
    assert "one sentence" in said
    assert "“a b c”" in said
    assert "3 words" in said
    assert "no held-out text" in said
    assert memorised({"origin": {"preset": "tiny"}}) == memorised({}) == memorised({"origin": 3}) == ""
    assert about({"dtype": "int8", "origin": {"run": "x", "step": 3}}) == "This bundle: run x, step 3, 8-bit weights."


def test_unknown_words() -> None:
    assert unknown([]) == ""
    assert unknown(["x"]) == "The model does not know “x”: it reads it as a blank."
    many = unknown([*"abcdef", "a"])
    assert many == "The model does not know “a”, “b”, “c”, “d” and 2 more: it reads them as blanks."
