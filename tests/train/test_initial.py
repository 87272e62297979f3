"""Continuing: growth changes no answer that the model could give before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from support.models import MODELS, TWO_FAMILIES, assert_trees_equal, logits_of, randomised
from support.runs import save_run

from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.errors import UserError
from jax_mlm.hf.directory import export_hf
from jax_mlm.model.params import expected_shapes
from jax_mlm.presets import SENTENCE
from jax_mlm.train.start import Initial, grow, read_initial

TOKENIZER = train_tokenizer([SENTENCE], "word", 16)
IDS = [3, 9, 2, 14, 40]


@pytest.mark.parametrize("family", TWO_FAMILIES)
def test_growth_keeps_every_old_answer(family: str) -> None:
    model = replace(MODELS[family], layers=1, tied=family in ("bert", "albert", "modernbert"))
    start = Initial(model, randomised(model), TOKENIZER)
    grown = grow(start, 70, 80)
    assert (grown.model.vocab_size, grown.model.max_length) == (70, 80)
    shapes = {
        tuple(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(grown.params)
    }
    assert shapes == expected_shapes(grown.model)
    before, after = logits_of(start.model, start.params, IDS), logits_of(grown.model, grown.params, IDS)
    np.testing.assert_allclose(after[:, :64], before, atol=1e-5)
    spread = before.std(-1)
    assert (np.abs(after[:, 64:].mean(-1) - before.mean(-1)) < spread).all(), "new tokens are likely as an average one"
    assert len(np.unique(after[0, 64:])) == 6
    assert_trees_equal(grow(start, 70, 80).params, grown.params)


def test_learned_positions_repeat_after_the_offset() -> None:
    model = MODELS["roberta"]
    start = Initial(model, randomised(model), TOKENIZER)
    table = grow(start, 0, 40).params["position_table"]
    np.testing.assert_array_equal(table[: model.max_length + 1], start.params["position_table"])
    np.testing.assert_array_equal(table[33:41], start.params["position_table"][1:9])


def test_nothing_shrinks() -> None:
    start = Initial(MODELS["bert"], randomised(MODELS["bert"]), TOKENIZER)
    assert_trees_equal(grow(start, 10, 8).params, start.params)
    assert grow(start, 10, 8).model == start.model


def test_a_run_and_its_export_are_the_same_start(tmp_path: Path) -> None:
    model = MODELS["modernbert"]
    run = save_run(tmp_path / "run", model, randomised(model), TOKENIZER)
    export_hf(run, tmp_path / "hf")
    one, two = read_initial(run), read_initial(tmp_path / "hf")
    assert one.model == two.model
    assert_trees_equal(one.params, two.params)
    assert one.tokenizer.to_str() == two.tokenizer.to_str()
    with pytest.raises(UserError, match="neither a run directory"):
        read_initial(tmp_path)
