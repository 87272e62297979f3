"""Graphs of fine-tuned models compute what the JAX models do, for every family and every kind of head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlm_onnx import Tag
from mlm_onnx.bundle import BundleError, open_bundle
from mlm_onnx.bundle.graph_check import check_onnx
from mlm_onnx.bundle.layout import TAG
from mlm_onnx.convert.heads import fast_graph, hub_graph, targets_of
from mlm_onnx.convert.parity import PADDED_TASK, Shapes, onnx_side, open_session
from mlm_onnx.convert.precision import FP32, FP32_HUB, Precision
from mlm_onnx.convert.quantize import INT8, INT8_HUB
from mlm_onnx.convert.reference import Reference
from support.models import MODELS
from support.tasks import TASKS, drawn, task_bundle

from jax_mlm.config import TaskConfig

SHAPES: Shapes = ((1, 1, 1), (3, 7, 2), (2, 32, 5))
FAMILIES = ("modernbert", "bert", "roberta", "albert", "distilbert", "esm")
USUAL = (
    ("distilbert", "classify"),
    ("bert", "pair"),
    ("modernbert", "mean"),
    ("modernbert", "tag"),
    ("bert", "answer"),
)
"""Those that differ most; the others are slow tests."""
OTHERS = [
    *((family, "classify") for family in FAMILIES if family != "distilbert"),
    *(("bert", "mean"), ("modernbert", "number"), ("bert", "tag"), ("modernbert", "answer")),
]
CASES = [*USUAL, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_graphs_are_the_jax_model(family: str, name: str, tmp_path: Path) -> None:
    model, task = MODELS[family], TASKS[name]
    params = drawn(model, task)
    reference = Reference(model, params, model.vocab_size, task)
    fast = targets_of(task)[0]

    def differs(graph: Any, comparison: Any, precision: Precision) -> Any:
        file = tmp_path / f"{precision.name}.onnx"
        graph(task, model, params, precision).write(file)
        check_onnx(file, {path.name: path.stat().st_size for path in tmp_path.iterdir()})
        ours = onnx_side(open_session(file, comparison.options))
        expected = lambda **query: comparison.answer(reference, **query)  # noqa: E731
        return comparison.compare(expected, ours, model.vocab_size, SHAPES, model.token_types)

    assert differs(fast_graph, fast.comparison, FP32).max_difference <= 1e-4
    assert differs(hub_graph, PADDED_TASK, FP32_HUB).max_difference <= 1e-4
    for graph, comparison, precision in ((fast_graph, fast.comparison, INT8), (hub_graph, PADDED_TASK, INT8_HUB)):
        parity = differs(graph, comparison, precision)
        assert parity.max_difference > 1e-4
        assert parity.rms_difference < 0.25 * parity.logit_rms


def test_a_wrong_head_is_noticed() -> None:
    model, task = MODELS["modernbert"], TASKS["mean"]
    params = drawn(model, task)
    other = Reference(model, params, model.vocab_size, replace(task, pooling="cls"))
    reference = Reference(model, params, model.vocab_size, task)
    (query,) = list(targets_of(task)[0].comparison.queries(model.vocab_size, 2, SHAPES[1:2]))
    answers = [targets_of(task)[0].comparison.answer(each, **query) for each in (reference, other)]
    assert np.abs(answers[0] - answers[1]).max() > 1e-2


@pytest.mark.parametrize("label", ["x" * 1001, ""])
def test_a_bundle_that_nothing_could_open_is_not_written(label: str, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(BundleError, match=r"could not be opened: .*/b/manifest\.json .* is not 1 to 1000 characters"):
        task_bundle(tmp_path / "b", TaskConfig("classify", ("a", label)), family="distilbert")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert not [*(tmp_path / "b").iterdir()]


def test_entities_of_a_tagger_without_b_are_found_and_its_types_named(tmp_path: Path) -> None:
    bundle = open_bundle(task_bundle(tmp_path / "b", TaskConfig("tag", ("O", "I-x", "I-y"), overlap=4)))
    found = Tag(bundle)("The cat was in the garden again")["entities"]
    assert {each["label"] for each in found} <= {"x", "y"}
    assert found
    pytest.importorskip("gradio", reason="needs gradio: pip install 'mlm-onnx[demo]'")
    from mlm_onnx.demo.tasks import PAGES

    assert PAGES[TAG](bundle, 1).lead == "It knows x, y."
