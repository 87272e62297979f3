"""What a time budget is spent on follows from the speed of the device and the size of the text."""

from __future__ import annotations

import lzma
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mlm.cli.options import build
from jax_mlm.config import TrainConfig
from jax_mlm.cost.flops import train_flops
from jax_mlm.errors import UserError
from jax_mlm.presets import PRESETS
from jax_mlm.train import budget
from jax_mlm.train.__main__ import COMMAND
from jax_mlm.train.budget import REACHED, SIZES, Choice, Speed, choose, expected_loss, text_tokens

CPU = Speed(2e11, 0.4)
SPEEDS = st.floats(1e9, 1e18)
TEXTS = st.floats(1e3, 1e13)
SECONDS = st.floats(1, 1e7)


def chosen(seconds: float, flops: float = CPU.flops, text: float | None = None, **given: object) -> Choice:
    options = {"budget": "1h", **given}
    return choose(seconds, Speed(flops, 0.4), text, partial(build, TrainConfig, options))


def size(choice: Choice) -> int:
    return SIZES.index(choice.config.preset)


@given(SECONDS, SPEEDS, TEXTS, st.floats(1, 1e3))
def test_more_time_speed_or_text_never_gives_a_smaller_model(
    seconds: float, flops: float, text: float, more: float
) -> None:
    here = chosen(seconds, flops, text)
    assert size(chosen(seconds * more, flops, text)) >= size(here)
    assert size(chosen(seconds, flops * more, text)) >= size(here)
    assert size(chosen(seconds, flops, text * more)) >= size(here)
    assert size(chosen(seconds, flops, None)) >= size(here)


def test_a_processor_gets_tiny_and_an_accelerator_larger_ones() -> None:
    assert chosen(600).config == replace(PRESETS["tiny"], steps=0)
    assert [chosen(seconds, 400e12 / 0.4).config.preset for seconds in (300, 3600, 1e6)] == ["small", "base", "large"]
    assert chosen(3600, 400e12 / 0.4, text=1e4).config.preset == "tiny", "a text so small teaches no more"


@given(SECONDS, SPEEDS, TEXTS)
def test_a_batch_is_halved_only_where_steps_are_few(seconds: float, flops: float, text: float) -> None:
    config = chosen(seconds, flops, text).config
    whole = PRESETS[config.preset].batch
    assert config.batch <= whole
    assert config.batch % config.accumulate == 0
    if config.batch < whole:
        per_token = budget.flops_of_token(config)
        assert seconds * flops * 0.4 / per_token / (2 * config.batch * config.corpus.length) < budget.FEW_STEPS
    assert config.batch >= min(whole, budget.LEAST_BATCH)


def test_options_that_are_given_are_what_it_reckons_with() -> None:
    assert chosen(5).config.batch < 32
    few = chosen(5, batch=32, layers=2, width=128, heads=2)
    assert few.config.batch == 32
    assert "2 layers of 128" in few.lines[0]
    assert "32 a step" in few.lines[1]


def test_operations_of_a_token_by_hand() -> None:
    config = PRESETS["tiny"]
    row = config.corpus.length
    model = replace(config.model, vocab_size=8192)
    whole = train_flops(model, row, model.layers * row * row, row * 0.15)
    assert budget.flops_of_token(config) == pytest.approx(whole / row)


@pytest.mark.parametrize(
    ("text", "said"), [(1e4, "read about"), (1e12, "there is time for about 0% of the text"), (None, ""), (1e6, "")]
)
def test_a_text_too_small_or_too_large_is_said(text: float | None, said: str) -> None:
    warnings = chosen(600, text=text).warnings
    assert [said in line for line in warnings] == ([True] if said else [])


def test_the_expected_loss_is_measured_or_not_said() -> None:
    for tokens, loss in REACHED:
        assert expected_loss("tiny", tokens) == pytest.approx(loss)
        assert expected_loss("small", tokens) is None
    for (less, before), (more, after) in pairwise(REACHED):
        assert expected_loss("tiny", (less * more) ** 0.5) == pytest.approx((before + after) / 2)
    assert expected_loss("tiny", REACHED[0][0] / 2) is None
    assert expected_loss("tiny", REACHED[-1][0] * 2) is None


def test_a_text_is_measured_by_its_files(tmp_path: Path) -> None:
    text = "the river sees a green stone\n" * 3000
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(text.encode()))
    plain, packed = text_tokens([str(tmp_path / "a.txt")]), text_tokens([str(tmp_path / "b.txt.xz")])
    assert plain == pytest.approx(len(text) / budget.BYTES_A_TOKEN)
    assert packed is not None
    assert text_tokens([str(tmp_path)]) == pytest.approx(plain + packed)
    assert text_tokens(["-"]) is None
    with pytest.raises(UserError, match=r"none\.txt"):
        text_tokens([str(tmp_path / "none.txt")])


def test_the_command_prints_its_choice_unless_a_preset_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("the river sees a green stone\n" * 300)
    line = ["--data", str(tmp_path / "a.txt"), "--budget", "1h"]
    config = COMMAND.read(line)
    said = capsys.readouterr().err
    assert (config.preset, config.budget, config.steps) == ("tiny", "1h", 0)
    assert "chosen for 1h: preset tiny, 4 layers of 256" in said
    assert "warning: the text will be read about" in said
    named = COMMAND.read([*line, "--preset", "tiny"])
    assert named == config
    assert not capsys.readouterr().err
