"""Scores equal those of scikit-learn, scipy and seqeval, on random inputs and on those that scorers disagree about."""

from __future__ import annotations

import numpy as np
import pytest

from jax_mlm.config import TaskConfig
from jax_mlm.data.align import Unit
from jax_mlm.data.labels import Example, Span
from jax_mlm.errors import UserError
from jax_mlm.tasks.scores import matthews, of_entities, of_numbers, of_one_label, of_several_labels, ranks
from jax_mlm.tasks.tagging import check_types, entities, judged_tags, tag_targets

SEEDS = range(20)


def drawn(seed: int, labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    size, used = int(rng.integers(1, 60)), int(rng.integers(1, labels + 1))
    return rng.integers(0, used, size), rng.integers(0, labels, size)


def test_one_label_by_hand() -> None:
    scores = of_one_label(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 0]), ("no", "yes"))
    assert scores.confusion == ((1, 1), (1, 2))
    assert scores.figures["accuracy"] == pytest.approx(3 / 5)
    assert scores.figures["f1"] == scores.per_label["yes"].f1 == pytest.approx(2 / 3)
    assert scores.per_label["no"] == pytest.approx((0.5, 0.5, 0.5, 2))
    assert scores.figures["mcc"] == pytest.approx((1 * 2 - 1 * 1) / np.sqrt(2 * 3 * 2 * 3))


def test_one_label_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    names = ("a", "b", "c", "d")
    for seed in SEEDS:
        right, predicted = drawn(seed)
        ours = of_one_label(right, predicted, names)
        table = metrics.precision_recall_fscore_support(right, predicted, labels=range(4), zero_division=0)
        np.testing.assert_allclose(np.array([*ours.per_label.values()]).T, np.array(table), atol=1e-12)
        assert ours.confusion == tuple(map(tuple, metrics.confusion_matrix(right, predicted, labels=range(4)).tolist()))
        macro = metrics.f1_score(right, predicted, labels=range(4), average="macro", zero_division=0)
        assert ours.figures["macro_f1"] == pytest.approx(macro)
        if len({*right, *predicted}) > 1:
            assert ours.figures["mcc"] == pytest.approx(metrics.matthews_corrcoef(right, predicted))
    assert matthews(np.array([[3, 0], [2, 0]])) == 0


def test_several_labels_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        right, predicted = (rng.random((12, 3)) < rng.random(3) for _ in range(2))
        ours = of_several_labels(right, predicted, ("a", "b", "c"))
        assert ours.figures["accuracy"] == pytest.approx(metrics.accuracy_score(right, predicted))
        for mean in ("micro", "macro"):
            theirs = metrics.f1_score(right, predicted, average=mean, zero_division=0)
            assert ours.figures[f"{mean}_f1"] == pytest.approx(theirs)


def test_numbers_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats", reason="compares with scipy")
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        right, predicted = rng.integers(0, 6, 30) / 2, rng.normal(size=30).round(1)  # ties on both sides
        ours = of_numbers(right, predicted).figures
        assert ours["pearson"] == pytest.approx(stats.pearsonr(right, predicted).statistic)
        assert ours["spearman"] == pytest.approx(stats.spearmanr(right, predicted).statistic)
        np.testing.assert_array_equal(ranks(right), stats.rankdata(right))
    assert of_numbers(np.ones(3), np.arange(3.0)).figures["pearson"] == 0


TAGS = ("O", "B-a", "I-a", "B-creative-work", "I-creative-work")
ADVERSARIAL = (
    (["I-a", "I-a"], ["B-a", "I-a"]),  # begins with I-
    (["B-a", "I-creative-work"], ["B-a", "I-a"]),  # another type without B-
    (["O", "O"], ["O", "O"]),
    (["B-a", "B-a"], ["B-a", "I-a"]),
    (["B-a", "O", "I-a"], ["B-a", "O", "I-a"]),
    (["B-a"], ["B-creative-work"]),
)


def test_entities_are_seqevals() -> None:
    metrics = pytest.importorskip("seqeval.metrics", reason="compares with seqeval")
    from seqeval.scheme import IOB2

    rng = np.random.default_rng(0)
    drawn = [[[str(tag) for tag in rng.choice(TAGS, n)] for n in rng.integers(1, 8, 5)] for _ in range(40)]
    cases = [([right], [predicted]) for right, predicted in ADVERSARIAL]
    cases += [(right, [[*y, *["O"] * 8][: len(x)] for x, y in zip(right, predicted, strict=True)])
              for right, predicted in zip(drawn[::2], drawn[1::2], strict=True)]  # fmt: skip
    for right, predicted in cases:
        ours = of_entities(right, predicted)
        strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
        assert ours.figures["f1"] == pytest.approx(metrics.f1_score(right, predicted, **strict))
        assert ours.figures["precision"] == pytest.approx(metrics.precision_score(right, predicted, **strict))
        assert ours.figures["conlleval_f1"] == pytest.approx(metrics.f1_score(right, predicted, zero_division=0))
        if ours.per_label:
            report = metrics.classification_report(right, predicted, output_dict=True, **strict)
            for kind, scores in ours.per_label.items():
                assert scores.f1 == pytest.approx(report[kind]["f1-score"])


def test_entities_by_hand() -> None:
    right = [["B-a", "I-a", "O", "B-b"], ["O", "B-a"]]
    predicted = [["B-a", "I-a", "O", "I-b"], ["B-a", "O"]]
    figures = of_entities(right, predicted).figures
    assert figures["f1"] == pytest.approx(2 * 1 / (2 + 3))
    assert figures["conlleval_f1"] == pytest.approx(2 * 2 / (3 + 3))


def test_entities_of_a_type_without_b_begin_where_their_tag_does() -> None:
    """A model of IO, as camembert-ner is, finds what one of IOB2 finds, but for entities side by side."""
    words = (Unit(0, 1), Unit(2, 3), Unit(4, 5), Unit(6, 7))
    spans = (Span(0, 3, "x"), Span(4, 5, "y"))
    for labels in (("O", "I-x", "I-y"), ("O", "B-x", "I-x", "I-y"), ("I-y", "O", "I-x", "B-x")):
        task = TaskConfig("tag", labels)
        for inside in ((), tuple((word.start, word.end) for word in words)):
            example = Example("line 1", "a b c d", spans=spans, words=inside)
            check_types([example], labels)
            targets, _, _ = tag_targets([example], [words], task)
            logits = np.eye(len(labels))[targets]
            scores = judged_tags(task, [example], [words], logits)
            assert scores.figures["f1"] == scores.figures["accuracy"] == 1
            assert [(e.label, e.start, e.end) for e in entities(task, words, logits)] == [("x", 0, 3), ("y", 4, 5)]
    with pytest.raises(UserError, match="'c' has the label 'y', which is not one of those learned: x"):
        check_types([example], ("O", "I-x"))
