"""What a step is counted as: the operations of the positions that its task asks about."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest
from support.models import softened
from support.steps import BATCH, CONFIG, LENGTH, TUNED, VOCABULARY, labelled_batch, packed_batch

from jax_mlm.config import DistilConfig, MaskConfig
from jax_mlm.cost.flops import document_lengths, layers_pairs, train_flops
from jax_mlm.data.labelled import LabelledBatch
from jax_mlm.tasks.classify import labelled
from jax_mlm.tasks.distil import distilled
from jax_mlm.tasks.mlm import masked_lm
from jax_mlm.tasks.task import Task
from jax_mlm.train.program import make_flops


def counted(task: Task, batch: Any, teacher: Any = None) -> float:
    config = SimpleNamespace(model=CONFIG, batch=BATCH, steps=1)
    setup: Any = SimpleNamespace(config=config, budget=None, task=task, teacher=teacher, shard=(0, 1))
    return make_flops(setup)(batch)


def by_hand(batch: Any, targets: float, asked: float) -> float:
    lengths = document_lengths(batch.segments)
    return train_flops(CONFIG, lengths.sum(), layers_pairs(CONFIG, lengths), targets, asked)


@pytest.mark.parametrize(("kind", "everywhere"), [("single", False), ("tag", False), ("mean", True), ("answer", True)])
def test_the_last_layer_of_a_tuned_model_is_counted_where_it_is_read(kind: str, everywhere: bool) -> None:
    batch: LabelledBatch = labelled_batch(TUNED[kind], 0)
    tokens, slots = (batch.segments > 0).sum(), (batch.items >= 0).sum()
    assert slots < tokens
    expected = by_hand(batch, 0, tokens if everywhere else slots)
    assert counted(labelled(CONFIG, TUNED[kind], jnp.float32), batch) == expected


def test_a_teacher_and_its_student_are_counted_everywhere() -> None:
    task, batch = masked_lm(CONFIG, MaskConfig(), VOCABULARY, LENGTH, jnp.float32), packed_batch(0)
    targets, tokens = BATCH * task.targets, (batch.segments > 0).sum()
    assert counted(task, batch) == by_hand(batch, targets, targets)
    taught = distilled(task, DistilConfig(), CONFIG, CONFIG, softened(CONFIG), jnp.float32)
    expected = by_hand(batch, targets, tokens)
    assert counted(taught, batch, SimpleNamespace(model=CONFIG)) == pytest.approx(expected * 4 / 3)
