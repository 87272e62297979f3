"""Rows are answered in their order, each as it is alone, and reduced in the thread that computed them."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from mlm_onnx.answer import engine
from mlm_onnx.answer.engine import Engine, Row
from mlm_onnx.bundle.read import open_bundle
from support.bundles import SENTENCE_MODEL


def rows_of(lengths: list[int]) -> list[Row]:
    draw = np.random.default_rng(0)
    return [Row(draw.integers(5, 13, length), np.array([length // 2])) for length in lengths]


@pytest.mark.parametrize("name", ["fp32", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_results_are_in_the_order_of_the_rows(name: str, threads: int, sentence_bundles: dict[str, Path]) -> None:
    made = Engine(open_bundle(sentence_bundles[name]), threads, SENTENCE_MODEL.vocab_size)
    rows = rows_of([9, 4, 9, 12, 4, 1, 9, 12, 7] * 5)
    found = made.map(rows, lambda index, logits: (index, logits.copy()))
    assert [index for index, _ in found] == list(range(len(rows)))
    for row, (_, logits) in zip(rows, found, strict=True):
        (alone,) = made.map([row], lambda _, each: each.copy())
        assert logits.shape == (1, made.outputs)
        np.testing.assert_allclose(logits, alone, atol=0 if name == "int8" else 1e-4)
    together = made.embeddings([row.ids for row in rows])
    for row, found_mean in zip(rows, together, strict=True):
        np.testing.assert_allclose(found_mean, made.embeddings([row.ids])[0], atol=0 if name == "int8" else 1e-4)
    assert made.map([], lambda index, logits: index) == []


def test_logits_are_reduced_in_the_workers_and_then_freed(
    sentence_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows there are, the logits of a run or so a thread are alive."""
    made = Engine(open_bundle(sentence_bundles["int8"]), 2, SENTENCE_MODEL.vocab_size)
    real = engine.Session.run
    computed: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def run(self: engine.Session, shape: tuple[int, ...], **given: np.ndarray) -> np.ndarray:
        logits = real(self, shape, **given)
        computed.append(weakref.ref(logits))
        alive.append(sum(each() is not None for each in computed))
        return logits

    monkeypatch.setattr(engine.Session, "run", run)
    names = made.map(rows_of([9] * 200), lambda index, logits: threading.current_thread().name)
    assert len(names) == 200
    assert all(name.startswith("mlm_onnx") for name in names), "reduced in a worker"
    assert len(computed) == 200
    assert max(alive) <= 4
