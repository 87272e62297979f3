"""Heads of tasks have the names and the values that transformers gives them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.models import MODELS, assert_trees_equal, cached_shapes, shapes_of

from jax_mlm.config import ModelConfig, TaskConfig
from jax_mlm.errors import UserError
from jax_mlm.hf.config import AFTER_PADDING, hf_config
from jax_mlm.hf.names import entries
from jax_mlm.hf.tasks import CLASSES, check_family, task_of, with_task
from jax_mlm.hf.tokenizer import hf_tokenizer_config
from jax_mlm.hf.weights import open_tensors, read_body, read_params, write_params
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.task_heads import begin_with, make_task_forward

CLASSIFY = TaskConfig("classify", ("a", "b", "c"))
TASKS = {
    "classify": CLASSIFY,
    "several": replace(CLASSIFY, problem="multi"),
    "number": TaskConfig("classify", problem="regression"),
    "pair": replace(CLASSIFY, pair=True),
    "tag": TaskConfig("tag", ("O", "B-x", "I-x")),
    "IO": TaskConfig("tag", ("O", "I-x", "I-creative-work")),
    "answer": TaskConfig("answer", pair=True, max_answer=7, no_answer=True),
}
SHALLOW = {name: replace(model, layers=1) for name, model in MODELS.items()}
"""For what does not depend on the number of layers."""


def asking(limits: dict[str, object]) -> dict[str, object]:
    """Return the config.json of a model that answers questions."""
    return {"architectures": ["BertForQuestionAnswering"], "task_specific_params": {"question-answering": limits}}


def tagging(*labels: str) -> dict[str, object]:
    """Return the config.json of a model that tags words."""
    return {
        "architectures": ["BertForTokenClassification"],
        "id2label": {str(i): label for i, label in enumerate(labels)},
    }


def drawn(model: ModelConfig, task: TaskConfig) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0.1, 0.4, leaf.shape).astype(np.float32), shapes_of(model, task))


@pytest.mark.parametrize("family", [name for name in MODELS if name not in ("xlm-roberta", "camembert")])
def test_every_array_of_a_head_has_a_name_and_comes_back(family: str, tmp_path: Path) -> None:
    model = SHALLOW[family]
    for kind in ("classify", "tag", "answer"):
        task = TASKS[kind]
        assert {entry.path for entry in entries(model, task)} == set(cached_shapes(model, task))
        params = drawn(model, task)
        write_params(tmp_path / "model.safetensors", params, model, task)
        assert_trees_equal(read_params(open_tensors(tmp_path), model, task), params)


@pytest.mark.parametrize("name", TASKS)
def test_labels_and_problem_come_back_from_config_json(name: str) -> None:
    for pooling in ("cls", "mean"):
        task = replace(TASKS[name], pooling=pooling if name == "classify" else "cls")
        values = with_task(hf_config(MODELS["modernbert"], 0, 1, 2), task)
        assert values["architectures"] == [f"ModernBert{CLASSES[task.kind]}"]
        back = task_of(values)
        assert back is not None
        assert (back.kind, back.labels, back.problem, back.pair, back.pooling, back.max_answer, back.no_answer) == (
            task.kind, task.labels, task.problem, task.pair, task.pooling, task.max_answer, task.no_answer,
        )  # fmt: skip
    assert task_of(hf_config(MODELS["bert"], 0, 1, 2)) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "none with the number 1"),
        ({"id2label": {"0": "a", "1": "a"}}, "two numbers the label 'a'"),
        ({"id2label": ["a"]}, "an object"),
        ({"problem_type": "several"}, "problem_type is 'several'"),
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
        ({"architectures": ["BertForQuestionAnswering"], "num_labels": 3}, "3 labels, where a model that answers"),
        (tagging("O", "B-x", "NN"), "the label 'NN', which is neither O nor like B-person or I-person: .* --task tag"),
        (tagging("O", "B-x", "I-x", "E-x", "S-x"), "the label 'E-x', which is neither"),
        (tagging("B-x", "I-x"), "id2label has no label O: only taggers of entities"),
        ({"task_specific_params": {"text-classification": {"pair": 1}}}, "pair is '1'"),
        (asking({"max_answer_len": "x"}), "max_answer_len is 'x'"),
        (asking({"handle_impossible_answer": 1}), "handle_impossible_answer is '1'"),
    ],
)
def test_wrong_labels_are_refused(values: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_of({"architectures": ["BertForSequenceClassification"], "model_type": "bert", **values})


def test_a_model_of_others_answers_with_the_usual_limits() -> None:
    task = task_of({"architectures": ["BertForQuestionAnswering"], "model_type": "bert"})
    assert task is not None
    assert (task.kind, task.outputs, task.max_answer, task.no_answer, task.metric) == ("answer", 2, 30, False, "f1")


def test_a_classifier_starts_fresh_and_what_is_there_is_kept(tmp_path: Path) -> None:
    for family, fresh in (("modernbert", ("classifier",)), ("bert", ("classifier", "pooler"))):
        model = SHALLOW[family]
        params = drawn(model, CLASSIFY)
        write_params(tmp_path / "model.safetensors", params, model, CLASSIFY)
        read = read_body(open_tensors(tmp_path), model, CLASSIFY)
        begun = begin_with(read, model, CLASSIFY, jax.random.key(0))
        assert begun.fresh == ("classifier",)
        assert_trees_equal({k: v for k, v in begun.params.items() if k != "classifier"},
                           {k: v for k, v in params.items() if k != "classifier"})  # fmt: skip
        without = {name: value for name, value in read.items() if name != "pooler"}
        assert begin_with(without, model, CLASSIFY, jax.random.key(0)).fresh == fresh


@pytest.mark.parametrize("name", ["modernbert-tag", "modernbert-mean", "bert-classify"])
def test_neighbours_in_a_row_change_no_logit(name: str) -> None:
    """Two texts side by side answer as each does alone."""
    family, kind = name.split("-")
    model = MODELS[family] if kind == "tag" else SHALLOW[family]
    task = replace(CLASSIFY, pooling="mean") if kind == "mean" else TASKS[kind]
    params, forward = drawn(model, task), jax.jit(make_task_forward(model, task))
    tokens = np.array([[3, 4, 5, 6, 7, 8, 9, 0]])
    segments, positions = np.array([[1, 1, 1, 2, 2, 2, 2, 0]]), np.array([[0, 1, 2, 0, 1, 2, 3, 0]])
    at = np.array([[0, 3]])
    both = np.asarray(forward(params, Inputs(tokens, segments, positions), at))
    alone = [Inputs(*(np.where(segments == which, x, 0) for x in (tokens, segments, positions))) for which in (1, 2)]
    moved = Inputs(*(np.roll(x, -3) for x in alone[1]))
    first, second = (np.asarray(forward(params, each, at))[0, 0] for each in (alone[0], moved))
    np.testing.assert_allclose(both[0], np.stack([first, second]), atol=1e-5)


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("name", ["classify", "tag", "mean", "answer"])
def test_logits_are_those_of_transformers(family: str, name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch: pip install 'jax-mlm[reference]'")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    if name == "mean" and family != "modernbert":
        pytest.skip("only ModernBERT has it")
    if name == "answer" and family == "esm":
        pytest.skip("transformers has none that answers questions")
    task = replace(CLASSIFY, pooling="mean") if name == "mean" else TASKS[name]
    model, params = MODELS[family], drawn(MODELS[family], task)
    pad = model.position_offset - 1 if family in AFTER_PADDING else 0
    config = with_task(hf_config(model, pad, 1, 2), task)
    write_params(tmp_path / "model.safetensors", params, model, task)
    cls = getattr(transformers, config["architectures"][0])
    kind = transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})
    theirs, facts = cls.from_pretrained(tmp_path, config=kind, attn_implementation="eager", output_loading_info=True)
    assert not facts["missing_keys"]
    assert not facts["unexpected_keys"]
    ids = np.random.default_rng(1).integers(5, 60, (2, 9))
    types = (
        np.broadcast_to(np.arange(9) > 3, ids.shape).astype(np.int32) if task.pair and model.token_types > 1 else None
    )
    more = {} if types is None else {"token_type_ids": torch.tensor(types, dtype=torch.long)}
    with torch.no_grad():
        read = {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
        expected = theirs.eval()(**read, **more)
    positions = np.broadcast_to(np.arange(9), ids.shape)
    at = positions[:, :1] if task.kind == "classify" else positions
    ours = jax.jit(make_task_forward(model, task))(params, Inputs(ids, np.ones_like(ids), positions), at, types)
    if task.kind == "answer":
        np.testing.assert_allclose(ours[..., 0], expected.start_logits.numpy(), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(ours[..., 1], expected.end_logits.numpy(), rtol=1e-5, atol=1e-4)
        return
    ours = ours[:, 0] if task.kind == "classify" else ours
    np.testing.assert_allclose(ours, expected.logits.numpy(), rtol=1e-5, atol=1e-4)


def test_a_tokenizer_gives_token_types_to_models_that_read_two_of_them() -> None:
    for model in MODELS.values():
        named = hf_tokenizer_config({}, 32, model.token_types)["model_input_names"]
        assert ("token_type_ids" in named) == (model.token_types > 1)


def test_a_family_without_a_class_for_the_task_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="ESM-2, a model of proteins"):
        check_family("esm", "answer", "--init x")
    with pytest.raises(UserError, match="ESM-2, a model of proteins"):
        task_of({"architectures": ["EsmForQuestionAnswering"], "model_type": "esm"})
    for family in MODELS:
        check_family(family, "tag", "--init x")  # pyright: ignore[reportArgumentType]
