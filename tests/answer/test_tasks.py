"""`Classify`, `Tag` and `Answer` answer from a bundle as the fine-tuned JAX model does."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlm_onnx import Answer, Classify, FillMask, QueryError, Tag
from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.convert import Request, write_bundle
from mlm_onnx.convert.asked import Tuned
from support.bundles import KINDS, ONE_SHAPE, ORIGIN, TEXTS, piecewise
from support.tasks import LENGTH, TASKS, drawn, sized

from jax_mlm.config import DataConfig, TrainConfig
from jax_mlm.data.labels import Example
from jax_mlm.evals.answers import answers, predicted

LINES = [
    *TEXTS[:6],
    " ".join(TEXTS[6:10]),
    "",
    "  spaces   around\tand\nwithin  ",
    "a [MASK] and a [SEP] <mask> in the text, [UNK] too",
    "ünïcödé 東京 😀😀 mixed",
    "x",
]
MORE = ["the cat " * 11] * 20
"""Texts beside which others fill a batch, with any tokenizer."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Callable[..., list[Any]]]]:
    """(task, tokenizer, family, layers) → its bundle in float32, and what JAX answers to texts."""
    base = tmp_path_factory.mktemp("tasks")

    def make(name: str, kind: str = "wordpiece", family: str = "modernbert", layers: int = 1) -> Any:
        tokenizer, task, model = piecewise(kind), TASKS[name], replace(sized(family, kind), layers=layers)
        params, folder = drawn(model, task), base / f"{name}-{kind}-{family}-{layers}"
        if not folder.exists():
            write_bundle(folder, model, params, tokenizer, Request("fp32"), ORIGIN, ONE_SHAPE, Tuned(task, LENGTH))
        config = TrainConfig(model=model, corpus=DataConfig(length=LENGTH))

        def jaxs(texts: list[Any]) -> list[Any]:
            pairs = [(each, None) if isinstance(each, str) else each for each in texts]
            pairs += [(each, None) for each in MORE] if task.kind == "tag" else []
            examples = [Example(f"line {i}", text, pair) for i, (text, pair) in enumerate(pairs)]
            return list(answers(task, *predicted(config, task, tokenizer, params, examples)))[: len(texts)]

        return folder, jaxs

    return make


@pytest.mark.parametrize(
    "kind", ["bpe", *(pytest.param(each, marks=pytest.mark.slow) for each in ("wordpiece", "unigram"))]
)
def test_a_classifier_answers_as_jax_does(made: Any, kind: str) -> None:
    folder, jaxs = made("classify", kind, layers=2)
    for found, expected in zip(Classify(folder)(LINES), jaxs(LINES), strict=True):
        ours = {each["label"]: each["probability"] for each in found["labels"]}
        assert ours == pytest.approx(expected["probabilities"], abs=2e-5)
        assert found["label"] == expected["prediction"]
        assert [each["probability"] for each in found["labels"]] == sorted(ours.values(), reverse=True)
        assert sum(ours.values()) == pytest.approx(1)


def test_several_labels_numbers_and_pairs_are_as_jax_has_them(made: Any) -> None:
    folder, jaxs = made("several")
    for found, expected in zip(Classify(folder)(LINES), jaxs(LINES), strict=True):
        assert sorted(found["predicted"]) == sorted(expected["predictions"])
        assert {each["label"]: each["probability"] for each in found["labels"]} == pytest.approx(
            expected["probabilities"], abs=2e-5
        )
    folder, jaxs = made("number")
    values = [each["value"] for each in Classify(folder)(LINES)]
    assert values == pytest.approx([each["prediction"] for each in jaxs(LINES)], abs=1e-4)
    pairs = [(a, b) for a in LINES[4:8] for b in LINES[4:8]]
    for family in ("bert", "roberta"):
        folder, jaxs = made("pair", family=family)
        found = Classify(folder)(pairs)
        assert [each["label"] for each in found] == [each["prediction"] for each in jaxs(pairs)]
        ours = [each["probability"] for each in found]
        assert ours == pytest.approx([each["probability"] for each in jaxs(pairs)], abs=2e-5)
        assert [each for each in found if "left_out" in each], "a first text of several windows is cut, and said"


@pytest.mark.parametrize("kind", KINDS)
def test_a_tagger_finds_what_jax_finds(made: Any, kind: str) -> None:
    folder, jaxs = made("tag", kind, layers=2)
    entities = 0
    for text, found, expected in zip(LINES, Tag(folder)(LINES), jaxs(LINES), strict=True):
        for ours, theirs in zip(found["entities"], expected["entities"], strict=True):
            assert ours == {**theirs, "probability": pytest.approx(theirs["probability"], abs=2e-5)}
            assert text[ours["start"] : ours["end"]] == ours["text"]
            assert ours["text"] == ours["text"].strip() != ""
            entities += 1
    assert entities > 20


@pytest.mark.parametrize(("name", "kind", "family"), [
    ("answer", "wordpiece", "bert"), ("perhaps", "bpe", "roberta"), ("perhaps", "unigram", "modernbert"),
])  # fmt: skip
def test_answers_are_jaxs(made: Any, name: str, kind: str, family: str) -> None:
    folder, jaxs = made(name, kind, family)
    questions, contexts = LINES[4:8] * len(LINES), [each for each in LINES for _ in LINES[4:8]]
    found = Answer(folder)(questions, contexts)
    theirs = jaxs(list(zip(contexts, questions, strict=True)))
    for context, ours, expected in zip(contexts, found, theirs, strict=True):
        assert (ours["answer"], ours["start"], ours["end"]) == tuple(
            expected[k] for k in ("prediction", "start", "end")
        )
        assert ours["probability"] == pytest.approx(expected["probability"], abs=2e-5)
        assert ours["answer"] is None or context[ours["start"] : ours["end"]] == ours["answer"] != ""
    assert sum(each["answer"] is not None for each in found) > 20
    assert [each for each in found if "left_out" in each], "a question of several windows is cut, and said"
    assert Answer(folder)("who?", LINES[0]) == Answer(folder)(["who?"], LINES[0])[0]
    with pytest.raises(QueryError, match="2 questions about 1 contexts"):
        Answer(folder)(["a", "b"], ["c"])


def test_what_is_asked_with_it_changes_no_answer(made: Any) -> None:
    for name, kind in (("classify", Classify), ("tag", Tag)):
        predictor = kind(made(name, layers=2)[0], threads=2)
        together = predictor(LINES)
        assert predictor([]) == []
        for each, alone in zip(together, map(predictor, LINES), strict=True):
            assert str(each.keys()) == str(alone.keys())
            assert each.get("label") == alone.get("label")
            assert each.get("probability", 0) == pytest.approx(alone.get("probability", 0), abs=1e-5)
        assert pickle.loads(pickle.dumps(predictor))(LINES[0]) == together[0]


def test_wrong_questions_are_one_line(made: Any) -> None:
    one, tagger = Classify(made("classify", layers=2)[0]), Tag(made("tag", layers=2)[0])
    two = Classify(made("pair", family="bert")[0])
    for ask, message in (
        (lambda: one(("a", "b")), "judges one text"),
        (lambda: two("a"), "pairs of texts"),
        (lambda: two([("a", "b", "c")]), "tuple of two"),
        (lambda: two([("a", 1)]), "tuple of two"),
        (lambda: one([1]), "must be a str"),
        (lambda: one(3), "must be a str or several"),
        (lambda: one(["a", "\ud800"]), "text 1 .*not valid UTF-8"),
        (lambda: one("a", top_k=0), "top_k"),
        (lambda: tagger("x" * 1_000_001), "1000001 characters"),
        (lambda: tagger(("a", 2)), "must be a str"),
        (lambda: Classify(made("classify", layers=2)[0], threads=0), "threads"),
    ):
        with pytest.raises(QueryError, match=message):
            ask()


def test_a_bundle_of_another_task_names_the_command_that_fits(made: Any, sentence_bundles: dict[str, Path]) -> None:
    for kind, folder, command in (
        (FillMask, made("classify", layers=2)[0], "mlm_onnx classify"),
        (Classify, made("tag", layers=2)[0], "mlm_onnx tag"),
        (Tag, sentence_bundles["fp32"], "mlm_onnx fill"),
    ):
        with pytest.raises(BundleError, match=f"use python -m {command}"):
            kind(folder)
