"""Answers: the loss of a window is its own, the best span is the best of all windows, and scores are SQuAD's."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from mlm_onnx.answer import questions

from jax_mlm.tasks.questions import agreement, best_answer, longest_answer, of_answers, span_metrics, window_losses

# ---- learning ------------------------------------------------------------------------------------


def rows(rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    """Return three rows of windows side by side, and logits; the last row is padding."""
    sizes = [[5, 3, 4], [9], []]
    segments, at = np.zeros((3, 14), np.int32), np.zeros((3, 3), np.int32)
    targets, weights = np.zeros((3, 3, 2), np.int32), np.zeros((3, 3), np.float32)
    for row, windows in enumerate(sizes):
        for slot, (begin, size) in enumerate(zip(np.cumsum([0, *windows]), windows, strict=False)):
            segments[row, begin : begin + size], at[row, slot], weights[row, slot] = slot + 1, begin, 1
            targets[row, slot] = np.sort(rng.integers(0, size, 2))
    batch = SimpleNamespace(segments=segments, at=at, targets=targets, weights=weights)
    return batch, rng.normal(0, 3, (3, 14, 2)).astype(np.float32)


def test_the_loss_of_a_window_is_that_of_its_own_positions() -> None:
    batch, logits = rows(np.random.default_rng(0))
    metrics = jax.jit(lambda values: span_metrics(values, batch))(logits)
    pieces, targets, right = [], [], 0
    for row, slot in zip(*np.nonzero(batch.weights), strict=True):
        window = logits[row, batch.segments[row] == slot + 1]
        pieces.append(window)
        targets.append(batch.targets[row, slot])
        right += int((window.argmax(0) == targets[-1]).all())
    by_hand = [
        -np.mean([np.log(np.exp(w[at[k], k]) / np.exp(w[:, k]).sum()) for k in (0, 1)])
        for w, at in zip(pieces, targets, strict=True)
    ]
    assert float(metrics.loss_sum) == pytest.approx(sum(by_hand), rel=1e-5)
    assert (float(metrics.count), float(metrics.correct)) == (4, right)
    first = np.cumsum([0, *map(len, pieces)])
    np.testing.assert_allclose(window_losses(np.concatenate(pieces), first, np.array(targets)), by_hand, rtol=1e-5)


def test_a_window_gives_its_neighbours_no_gradient() -> None:
    batch, logits = rows(np.random.default_rng(1))
    batch.weights = np.where(np.arange(3) == 1, batch.weights, 0)
    gradient = jax.jit(jax.grad(lambda values: span_metrics(values, batch).loss_sum))(logits)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.abs(gradient).sum(-1) > 0, batch.segments == 2)


# ---- answering -----------------------------------------------------------------------------------


def asked(rng: np.random.Generator, no_answer: bool) -> dict[str, Any]:
    """Return what a model might answer about a context in some windows."""
    sizes = rng.integers(1, 12, rng.integers(1, 4))
    N = int(sizes.sum())
    begins = np.cumsum(rng.integers(1, 5, N))
    return {
        "start": rng.normal(0, 2, N).astype(np.float32),
        "end": rng.normal(0, 2, N).astype(np.float32),
        "window": np.repeat(np.arange(len(sizes)) + 7, sizes),
        "offsets": np.stack([begins, begins + 1], -1),
        "inside": rng.random(N) < 0.7,
        "null": rng.normal(0, 3, len(sizes)).astype(np.float32),
        "max_answer": int(rng.integers(1, 15)),
        "no_answer": no_answer,
    }


@pytest.mark.parametrize("no_answer", [False, True])
def test_the_best_span_of_all_windows_is_found(no_answer: bool) -> None:
    for seed in range(60):
        given = asked(np.random.default_rng(seed), no_answer)
        start, end, inside, window = (given[name] for name in ("start", "end", "inside", "window"))
        scores: dict[tuple[int, int] | None, float] = {}
        for i, j in itertools.combinations_with_replacement(range(len(start)), 2):
            if inside[i] and inside[j] and window[i] == window[j] and j - i < given["max_answer"]:
                scores[(int(given["offsets"][i, 0]), int(given["offsets"][j, 1]))] = float(start[i]) + float(end[j])
        if no_answer:
            scores[None] = float(given["null"].min())
        found = best_answer(**given)
        if not scores:
            assert found == (None, 1.0)
            continue
        best = max(scores, key=lambda span: scores[span])
        assert found.span == best
        assert found.probability == pytest.approx(np.exp(scores[best]) / sum(map(np.exp, scores.values())))


def in_a_bundle(
    start: np.ndarray, end: np.ndarray, window: np.ndarray, offsets: np.ndarray, inside: np.ndarray, *rest: Any
) -> Any:
    return questions.best_answer(np.stack([start, end], -1), window, offsets * inside[:, None], *rest)


@pytest.mark.parametrize("best", [best_answer, in_a_bundle])
def test_answers_of_any_length_take_memory_for_those_of_a_window(best: Callable[..., Any]) -> None:
    rng, N = np.random.default_rng(0), 3000
    begins = np.arange(N) * 3
    given = (
        *rng.normal(0, 2, (2, N)).astype(np.float32), np.arange(N) // 10, np.stack([begins, begins + 2], -1),
        rng.random(N) < 0.9, np.zeros(N // 10, np.float32),
    )  # fmt: skip
    tracemalloc.start()
    found = best(*given, 100_000, True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == best(*given, 10, True)
    assert peak < 10e6


def test_answers_by_hand() -> None:
    given: dict[str, Any] = {
        "start": np.array([9.0, 0, 2, 0, 9, 3]),
        "end": np.array([9.0, 0, 0, 2, 9, 3]),
        "window": np.array([0, 0, 0, 0, 1, 1]),
        "offsets": np.array([[0, 0], [0, 2], [3, 5], [6, 8], [0, 0], [6, 8]]),
        "inside": np.array([False, True, True, True, False, True]),
        "null": np.array([18.0, 18]),
        "max_answer": 5,
        "no_answer": False,
    }
    assert best_answer(**given).span == (6, 8)  # of the second window: 6 > 2 + 2, and special tokens do not count
    assert best_answer(**{**given, "end": np.array([9.0, 0, 0, 5, 9, 3])}).span == (3, 8)
    assert best_answer(**{**given, "end": np.array([9.0, 0, 0, 5, 9, 3]), "max_answer": 1}).span == (6, 8)
    assert best_answer(**{**given, "no_answer": True}).span is None
    assert best_answer(**{**given, "no_answer": True, "null": np.array([18.0, 5.9])}).span == (6, 8)
    assert best_answer(**{**given, "start": np.zeros(6), "end": np.zeros(6)}) == ((0, 2), pytest.approx(1 / 7))


def test_the_longest_answer_is_a_quantile_of_those_to_learn() -> None:
    assert longest_answer(np.array([0, 0])) == 1
    assert longest_answer(np.array([0, 3, 1])) == 3
    assert longest_answer(np.array([*[2] * 9999, 500])) == 2


# ---- scores --------------------------------------------------------------------------------------

MARKS = set("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


def words_of(text: str) -> list[str]:
    """Return what SQuAD's script compares, written without regular expressions."""
    kept = "".join(letter for letter in text.lower() if letter not in MARKS)
    runs = ["".join(run) for _, run in itertools.groupby(kept, str.isalnum)]
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def scored(references: list[str], predicted: str) -> tuple[float, float]:
    best = [0.0, 0.0]
    for right in [text for text in references if words_of(text)] or [""]:
        theirs, ours, both = words_of(right), words_of(predicted), 0
        best[0] = max(best[0], float(theirs == ours))
        left = list(theirs)
        for word in ours:
            if word in left:
                left.remove(word)
                both += 1
        if not theirs or not ours:
            best[1] = max(best[1], float(theirs == ours))
        elif both:
            precision, recall = both / len(ours), both / len(theirs)
            best[1] = max(best[1], 2 * precision * recall / (precision + recall))
    return best[0], best[1]


PARTS = ("a", "An", "THE", "theatre", "New", "York", "new", ",", ".", "'s", "-", "–", "é", "e\u0301", "  ", "\t",
         "3", "3.0", "$", "«", "Ａ", "İ", "a–b", "_", "the-", "\u00a0", "")  # fmt: skip


def test_scores_are_those_of_squads_script() -> None:
    rng = np.random.default_rng(0)

    def text() -> str:
        return str(rng.choice(["", " "])).join(rng.choice(PARTS, rng.integers(0, 7)))

    every = [([text() for _ in range(rng.integers(0, 4))], text()) for _ in range(1200)]
    every += [(["the"], ""), (["the", "York"], "the"), ([], "a"), (["A."], ""), (["x y"], "y x"), (["x x y"], "x z")]
    for references, predicted in every:
        assert agreement(references, predicted) == pytest.approx(scored(references, predicted))
    assert sum(0 < scored(*each)[1] < 1 for each in every) > 50
    figures = of_answers([each[0] for each in every], [each[1] for each in every]).figures
    both = np.array([scored(*each) for each in every])
    assert (figures["exact"], figures["f1"]) == pytest.approx(tuple(both.mean(0)))
    none = np.array([not references for references, _ in every])
    assert figures["f1_without_answer"] == pytest.approx(both[none, 1].mean())
    assert figures["f1_with_answer"] == pytest.approx(both[~none, 1].mean())
