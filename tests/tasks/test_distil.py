"""`train --distil`: the student learns what the teacher knows, and the teacher learns nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.models import EACH_FAMILY, MODELS, SHAPE, TWO_FAMILIES, assert_trees_equal, logits_of, randomised, softened
from support.runs import SMALL, save_run, train_line
from support.steps import BATCH, LENGTH, VOCABULARY, tree_difference, uneven_batch
from support.texts import write_sentences

from jax_mlm.config import DistilConfig, MaskConfig, ModelConfig, OptimConfig
from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.hf.directory import export_hf, read_hf
from jax_mlm.presets import PRESETS, SENTENCE
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run_file
from jax_mlm.run.log import read_metrics
from jax_mlm.tasks.distil import DistilBatch, cosine_distance, distilled, soft_targets
from jax_mlm.tasks.masking import Masked
from jax_mlm.tasks.mlm import MaskedBatch, masked_lm
from jax_mlm.tasks.task import Task
from jax_mlm.train.optim import make_optimizer, make_schedule
from jax_mlm.train.start import Initial
from jax_mlm.train.step import init_state, make_train_step
from jax_mlm.train.teacher import student_defaults, student_params, taken_layers

STUDENT = ModelConfig(vocab_size=64, width=16, layers=1, heads=2, ff_width=24, max_length=LENGTH)
TEACHER = replace(STUDENT, ff_width=32)


def masked() -> Masked:
    """Return the rows with one token of eight hidden, where there is one."""
    tokens, at = uneven_batch().tokens.copy(), np.tile(np.arange(1, LENGTH, 8, dtype=np.int32), (BATCH, 1))
    targets = np.take_along_axis(tokens, at, 1)
    real = targets != VOCABULARY.pad
    np.put_along_axis(tokens, at, np.where(real, VOCABULARY.mask, VOCABULARY.pad), 1)
    return Masked(*map(jnp.asarray, (tokens, at, targets, real.astype(np.float32))))


def taught_task(config: DistilConfig, student: ModelConfig = STUDENT, teacher: ModelConfig = TEACHER) -> Task:
    task = masked_lm(student, MaskConfig(), VOCABULARY, LENGTH, jnp.float32)
    return distilled(task, config, student, teacher, softened(teacher), jnp.float32)


# ---- the terms, by hand --------------------------------------------------------------------------


def test_soft_targets_by_hand() -> None:
    student, teacher = jnp.array([[[0.0, 2.0], [5.0, 5.0]]]), jnp.array([[[2.0, 0.0], [1.0, 9.0]]])
    p = 1 / (1 + np.exp(-1.0))  # 2 / T = 1
    by_hand = 4 * (p * np.log(p / (1 - p)) + (1 - p) * np.log((1 - p) / p))
    assert float(soft_targets(student, teacher, jnp.array([[1.0, 0.0]]), 2.0)) == pytest.approx(by_hand, rel=1e-6)


def test_cosine_by_hand() -> None:
    student = jnp.array([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]])
    teacher = jnp.array([[[4.0, 3.0], [0.0, 7.0], [1.0, 0.0]]])
    assert float(cosine_distance(student, teacher, jnp.array([[1.0, 1.0, 0.0]]))) == pytest.approx(1 - 24 / 25 + 1)


def test_the_objective_is_their_weighted_sum_and_only_the_student_learns() -> None:
    rows, hidden = uneven_batch(), masked()
    student, teacher = softened(STUDENT), softened(TEACHER)
    share = float(hidden.weights.sum() / (rows.segments > 0).sum())
    given = DistilBatch(MaskedBatch(rows, hidden), jnp.full(BATCH, share))
    objective = taught_task(DistilConfig("t", 5.0, 2.0, 3.0)).loss
    to_both = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    (total, metrics), (to_student, to_teacher) = jax.device_get(to_both(student, teacher, given, None))
    mlm, soften, cosine = map(float, (metrics.loss_sum, metrics.more["soft"], metrics.more["cosine"]))
    assert min(mlm, soften, cosine) > 0
    assert float(total) == pytest.approx(2 * mlm + 5 * soften + 3 * cosine, rel=1e-5)
    assert cosine < 2 * float(hidden.weights.sum()), "a mean over tokens, times the number of targets"
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(to_student))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(to_teacher))


@pytest.mark.parametrize("family", TWO_FAMILIES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(family: str) -> None:
    model = replace(MODELS[family], layers=1, dropout=0.0, attention_dropout=0.0)
    params = softened(model)
    objective = jax.jit(taught_task(DistilConfig("t", 1.0, 0.0, 1.0), model, model).loss)
    given = DistilBatch(MaskedBatch(uneven_batch(), masked()), jnp.full(BATCH, 0.15))
    total, metrics = objective(params, params, given, None)
    assert abs(float(total)) / float(metrics.count) < 1e-5


@pytest.mark.slow
def test_a_short_run_comes_nearer_to_the_teacher() -> None:
    config = OptimConfig(lr=1e-2, schedule="constant", warmup=0.0)
    task, tx = taught_task(DistilConfig("t")), make_optimizer(config)
    step = jax.jit(make_train_step(task, tx, make_schedule(config), jax.random.key(7)))
    state, rows, hidden = init_state(softened(STUDENT), tx), uneven_batch(), masked()
    teacher = jax.tree.map(jnp.asarray, softened(TEACHER))
    given = DistilBatch(MaskedBatch(rows, hidden), jnp.full(BATCH, 0.15))
    apart = jax.jit(lambda params: task.loss(params, teacher, given, None)[0])
    before = float(apart(state.params))
    for number in range(20):
        state, _ = step(state, uneven_batch(number), jnp.int32(100), teacher)
    assert float(apart(state.params)) < 0.9 * before


@pytest.mark.slow
def test_microbatches_add_up_to_the_batch() -> None:
    config = OptimConfig(lr=0.1, clip=0.0, schedule="constant", warmup=0.0, weight_decay=0.0, adam_eps=1.0)
    task, tx = taught_task(DistilConfig("t")), make_optimizer(config)
    results = []
    for accumulate in (1, 4):
        step = make_train_step(task, tx, make_schedule(config), jax.random.key(7), accumulate)
        state, metrics = jax.jit(step)(
            init_state(softened(STUDENT), tx), uneven_batch(), jnp.int32(100), softened(TEACHER)
        )
        results.append((state.params, float(metrics.loss_sum), jax.tree.map(float, metrics.more)))
    assert tree_difference(results[0][0], results[1][0]) < 2e-5
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)
    assert set(results[0][2]) == {"soft", "cosine"}
    assert results[0][2] == pytest.approx(results[1][2], rel=1e-4)
    assert BATCH % 4 == 0


# ---- where a student begins ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student", "taken"),
    [
        ((4, 2), (2, 2), [0, 3]),
        ((4, 2), (4, 1), [0, 1, 2, 3]),
        ((4, 2), (8, 2), [0, 0, 1, 1, 2, 2, 3, 3]),
        ((4, 1), (2, 1), [0, 2]),
        ((22, 3), (11, 3), [*range(0, 22, 2)]),
        ((22, 3), (12, 1), [i * 22 // 12 for i in range(12)]),
    ],
)
def test_layers_of_a_student_see_as_theirs_did_where_both_alternate(
    teacher: tuple[int, int], student: tuple[int, int], taken: list[int]
) -> None:
    theirs, ours = (ModelConfig(layers=layers, global_every=every) for layers, every in (teacher, student))
    assert taken_layers(ours, theirs) == taken


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_a_student_begins_with_every_other_layer(family: str, tmp_path: Path) -> None:
    model = replace(MODELS[family], layers=4, dropout=0.0)
    params, tokenizer = randomised(model), train_tokenizer([SENTENCE], "word", 16)
    save_run(tmp_path / "run", model, params, tokenizer)
    recipe = student_defaults(PRESETS["tiny"], tmp_path / "run", own_shape=False)
    assert recipe.model == replace(model, layers=2)
    assert (recipe.optim.optimizer, recipe.optim.lr, recipe.corpus.length) == ("adamw", 5e-4, 32)
    said: list[str] = []
    student = student_params(Initial(model, params, tokenizer), recipe.model, said.append)
    second = 3 if family == "modernbert" else 2  # every second layer of this one has a window
    assert said == [
        f"the student starts from layers {'0' if model.layer_groups else f'0, {second}'} of the teacher's 4"
    ]
    assert_trees_equal(student["layer_0"], params["layer_0"])
    if not model.layer_groups:
        assert_trees_equal(student["layer_1"], params[f"layer_{second}"])
    for name in set(student) - {"layer_0", "layer_1"}:
        assert_trees_equal(student[name], params[name])


def test_without_token_types_their_first_row_joins_the_positions() -> None:
    model = replace(MODELS["bert"], layers=1)
    teacher = Initial(model, randomised(model), train_tokenizer([SENTENCE], "word", 16))
    same, bare = replace(model), replace(model, family="distilbert", token_types=0)
    ids = [3, 9, 2, 14]
    whole = logits_of(same, student_params(teacher, same), ids)
    np.testing.assert_allclose(logits_of(bare, student_params(teacher, bare), ids), whole, atol=1e-5)
    moved = replace(bare, family="roberta", position_offset=2, token_types=1)
    assert student_params(teacher, moved) is None, "one type is not two"


def test_a_student_of_another_width_begins_at_random(capsys: Any) -> None:
    model = MODELS["bert"]
    teacher = Initial(model, randomised(model), train_tokenizer([SENTENCE], "word", 16))
    assert student_params(teacher, replace(model, width=8, heads=2)) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "starts from random weights: its width is 8, the teacher's 16" in said
    assert student_params(teacher, replace(model, ff_width=8)) is None
    assert "its layer_0.mlp.down.kernel of shape (8, 16) is (24, 16) in the teacher" in capsys.readouterr().err


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_short_run_learns_resumes_and_says_what_does_not_fit(tmp_path: Path, capsys: Any) -> None:
    text = write_sentences(tmp_path / "text")
    tokenizer = train_tokenizer(text.read_text().splitlines(), "wordpiece", 64)
    model = replace(MODELS["bert"], **SHAPE | {"vocab_size": 64, "layers": 2})
    export_hf(save_run(tmp_path / "run", model, softened(model), tokenizer), tmp_path / "teacher")
    shape = ["--width", 16, "--heads", 2, "--ff-width", 24, "--max-length", 32, "--layers", 1, "--accumulate", 1]
    options = ["--distil", tmp_path / "teacher", "--preset", "distilbert-base", *shape, "--data", text, *SMALL]
    options += ["--schedule", "constant", "--warmup", 0, "--lr", 3e-3, "--dropout", 0, "--attention-dropout", 0]
    assert train_line(*options, "--steps", 6, "--eval-every", 3, "--out", tmp_path / "whole") == 0
    assert "the student starts from layers 0 of the teacher's 2" in capsys.readouterr().err
    lines = [line for line in read_metrics(tmp_path / "whole") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert all(line["soft"] > 0 and 0 < line["cosine"] < 2 for line in lines)
    assert "1 − cosine to the teacher" in (tmp_path / "whole" / "report.html").read_text()
    facts = read_run_file(tmp_path / "whole")["data"]
    assert facts["teacher"] == facts["init"]
    assert facts["teacher"]["from"] == str(tmp_path / "teacher")
    export_hf(tmp_path / "whole", tmp_path / "student")
    assert read_hf(tmp_path / "student").model.family == "distilbert"
    assert "those of `teacher`, which taught this model" in (tmp_path / "student" / "README.md").read_text()

    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    assert train_line("--resume", "--steps", 6, "--out", tmp_path / "parts") == 0
    assert_trees_equal(load_params(tmp_path / "whole")[1], load_params(tmp_path / "parts")[1])

    def refused(*arguments: Any) -> str:
        capsys.readouterr()
        assert train_line(*arguments) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        return errors[0]

    other = tmp_path / "other.json"
    train_tokenizer(["another text"] * 20, "word", 5).save(str(other))
    new = ["--steps", 1, "--out", tmp_path / "no"]
    assert "has a different tokenizer from" in refused(*options, *new, "--tokenizer", other)
    assert "--length 33 exceeds" in refused(*options, *new, "--max-length", 64, "--length", 33)
    assert "--tokenizer-size is for" in refused(*options, *new, "--tokenizer-size", 128)
    assert "--distil-temperature" in refused(*options, *new, "--distil-temperature", 0)
    assert "neither a run directory" in refused("--distil", tmp_path / "none", "--data", text, *new)
    counted = refused("--distil", tmp_path / "teacher", "--data", text, "--embeddings", "counted", *new)
    assert "--embeddings counted is for new weights, and --distil has its own" in counted
    assert "--distil needs --data" in refused("--distil", tmp_path / "teacher", *new)
    assert not (tmp_path / "no").exists()
    export_hf(save_run(tmp_path / "changed", model, randomised(model), tokenizer), tmp_path / "teacher-2")
    (tmp_path / "teacher").rename(tmp_path / "gone")
    (tmp_path / "teacher-2").rename(tmp_path / "teacher")
    assert "has different weights" in refused("--resume", "--steps", 40, "--out", tmp_path / "parts")
