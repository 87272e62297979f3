"""What a time budget is spent on follows from the speed of the devices and the size of the text."""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import ROOT
from support.runs import TINY, train_line
from support.texts import sentences

from jax_mlm.cli.options import build
from jax_mlm.config import TrainConfig
from jax_mlm.errors import UserError
from jax_mlm.parallel.mesh import Layout
from jax_mlm.presets import PRESETS
from jax_mlm.run.directory import read_run
from jax_mlm.train import budget, speed
from jax_mlm.train.__main__ import COMMAND
from jax_mlm.train.budget import REACHED, SIZES, Choice, Machine, choose, expected_loss, text_tokens
from jax_mlm.train.speed import flops_of_token
from jax_mlm.train.survey import doubt_of_readings

CPU = Machine(flops=8e10, memory=16 << 30, bounded=False, layout=Layout(1))
GPU = Machine(flops=4e14, memory=80 << 30, bounded=True, layout=Layout(1))
TINY_PRESET = replace(PRESETS["tiny"], steps=0)
quickly = settings(deadline=None, max_examples=15)


def chosen(seconds: float, machine: Machine = CPU, text: float | None = None, **given: object) -> Choice:
    return choose({"budget": "1h", **given}, seconds, machine, text)


def size(choice: Choice) -> int:
    return SIZES.index(choice.config.preset)


# ---- the size ------------------------------------------------------------------------------------


@quickly
@given(st.floats(1, 1e7), st.floats(1e9, 1e18), st.floats(1e3, 1e13), st.floats(1, 1e3))
def test_more_time_speed_or_text_never_gives_a_smaller_model(
    seconds: float, flops: float, text: float, more: float
) -> None:
    machine = GPU._replace(flops=flops)
    here = chosen(seconds, machine, text)
    assert size(chosen(seconds * more, machine, text)) >= size(here)
    assert size(chosen(seconds, GPU._replace(flops=flops * more), text)) >= size(here)
    assert size(chosen(seconds, machine, text * more)) >= size(here)
    assert size(chosen(seconds, machine)) >= size(here)


def test_the_time_and_the_text_decide_the_size() -> None:
    assert [chosen(seconds).config.preset for seconds in (60, 1800, 14_400)] == ["nano", "micro", "tiny"]
    assert [chosen(seconds, GPU).config.preset for seconds in (300, 3600, 1e6)] == ["small", "base", "large"]
    assert chosen(14_400).config == TINY_PRESET
    assert chosen(60).config == replace(PRESETS["nano"], steps=0, batch=16), "fewer than 300 steps of 32 rows"
    assert chosen(3600, GPU, text=1e4).config.preset == "nano", "a text so small teaches no more"
    assert chosen(1e6, GPU._replace(memory=600 << 20)).config.preset == "small", "base does not fit"


def test_options_that_fit_one_size_alone_choose_it_and_those_that_fit_none_are_left_to_be_refused() -> None:
    assert chosen(300, GPU, heads=384).config.preset == "base", "of no other width are 384 heads of an even size"
    edge = chosen(3600, GPU, layers=2, width=96, heads=2, ff_width=192)
    assert edge.config.preset == "nano", "of equal sizes the smallest recipe"
    assert "2 layers of 96" in edge.lines[0]
    assert chosen(300, GPU, width=100, heads=3).config.preset == "nano"
    for name in ("micro", "tiny"):
        shape = {field: getattr(PRESETS[name].model, field) for field in ("layers", "width", "heads", "ff_width")}
        assert chosen(30, **shape).config.preset == name, "a shape that is spelled out"


# ---- the batch -----------------------------------------------------------------------------------


@quickly
@given(
    st.floats(1, 1e6),
    st.sampled_from([CPU, GPU, CPU._replace(layout=Layout(16)), GPU._replace(layout=Layout(64, 2, 2))]),
    st.sampled_from([{}, {"batch": 32}, {"accumulate": 64}, {"batch": 24, "accumulate": 3}]),
)
def test_the_batch_divides_over_devices_and_is_halved_only_where_steps_are_few(
    seconds: float, machine: Machine, options: dict[str, int]
) -> None:
    choice = chosen(seconds, machine, **options)
    run = build(TrainConfig, options, choice.config)
    if "batch" in options:
        assert run.batch == options["batch"]
        return
    assert run.batch // max(run.accumulate, 1) % machine.layout.rows == 0
    if run.batch < PRESETS[run.preset].batch:
        run = replace(run, model=replace(run.model, vocab_size=run.corpus.tokenizer_limit))
        per_step = 2 * run.batch * run.corpus.length * flops_of_token(run)
        assert seconds * machine.flops / per_step < budget.FEW_STEPS
        assert run.batch >= budget.LEAST_BATCH
        assert "halved" in choice.lines[1]


def test_large_batches_are_computed_in_parts_where_memory_is_not_known() -> None:
    config = chosen(1e6, GPU._replace(bounded=False)).config
    assert config.batch * config.corpus.length // config.accumulate == budget.AT_ONCE
    assert chosen(1e6, GPU).config.accumulate == 0
    assert chosen(14_400).config.accumulate == 1


# ---- what is said --------------------------------------------------------------------------------


def test_operations_of_a_token_by_hand() -> None:
    keys_and_values, others = 2 * 256**2, 2 * 256**2 + 3 * 256 * 384
    layers = 4 * keys_and_values + (3 + 0.4) * others  # the last one is computed at the masks
    head = 256**2 + 256 * 8192
    near = (17 * 128 - 2 * sum(range(1, 9))) / 128  # eight on each side, but for those beyond the ends of the row
    pairs = 2 * 128 + 2 * near
    tiny = replace(TINY_PRESET, model=replace(TINY_PRESET.model, vocab_size=8192))
    assert flops_of_token(tiny) == pytest.approx(6 * layers + 12 * 256 * pairs + 6 * 0.4 * head)


def test_letters_of_proteins_are_a_small_vocabulary() -> None:
    letters, pieces = chosen(600, tokenizer_kind="protein"), chosen(600, tokenizer_size=33)
    assert letters.lines[2:] == pieces.lines[2:]
    assert "a token a letter" in letters.lines[1]


def test_the_reason_is_the_time_or_the_text() -> None:
    assert "and there is time for" in chosen(600).lines[0]
    assert "and 40 readings of the text are 400,000" in chosen(3600, GPU, text=1e4).lines[0]
    assert ";" not in chosen(1e7, GPU).lines[0], "there is no larger one"
    assert "at most 8,192 pieces" in chosen(600).lines[1]
    assert "4,096 pieces" in chosen(600, tokenizer_size=4096).lines[1]
    assert "of a text whose size is not known" in chosen(600).lines[2]


@pytest.mark.parametrize(
    ("times", "said"),
    [(270.4, "read about 270 times"), (1e-5, "for less than 1% of"), (0.667, "for about 67%"), (0.96, ""), (39.0, "")],
)
def test_a_text_too_small_or_too_large_is_said(times: float, said: str) -> None:
    assert said in doubt_of_readings(times)
    assert bool(doubt_of_readings(times)) == bool(said)


def test_how_often_a_text_is_read_is_said_once_of_any_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text(sentences(100))
    line = [*TINY, "--data", tmp_path / "a.txt", "--log-every", "1", "--eval-every", "1000"]
    assert train_line(*line, "--budget", "3s", "--out", tmp_path / "budget") == 0
    assert capsys.readouterr().err.count("warning: the text will be read about") == 1
    assert train_line(*line, "--steps", "400", "--log-every", "100", "--out", tmp_path / "steps") == 0
    assert "will be read" not in capsys.readouterr().err, "so many steps were asked for"


@pytest.mark.parametrize("preset", REACHED)
def test_the_expected_loss_is_measured_or_not_said(preset: str) -> None:
    config, reached = replace(PRESETS[preset], steps=0), REACHED[preset]
    for tokens, loss in reached:
        assert expected_loss(config, tokens) == pytest.approx(loss)
        for other in (
            {"layers": 1},
            {"mask_rate": 0.3},
            {"lr": 1e-3},
            {"lowercase": True},
            {"batch": 64},
            {"tokenizer": "t.json"},
        ):
            assert expected_loss(build(TrainConfig, other, config), tokens) is None
        assert expected_loss(build(TrainConfig, {"document": "blank"}, config), tokens) is not None
    for (less, before), (more, after) in pairwise(reached):
        assert expected_loss(config, (less * more) ** 0.5) == pytest.approx((before + after) / 2)
    assert expected_loss(config, reached[0][0] / 2) is None
    assert expected_loss(config, reached[-1][0] * 2) is None


# ---- what is measured ----------------------------------------------------------------------------


def test_a_text_is_measured_by_its_files(tmp_path: Path) -> None:
    text = "the river sees a green stone\n" * 3000
    packed = lzma.compress(text.encode())
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.xz").write_bytes(packed)
    size = len(text) + len(packed) * budget.UNPACKED
    assert text_tokens([str(tmp_path)]) == pytest.approx(size / budget.BYTES_A_TOKEN)
    assert text_tokens([str(tmp_path / "a.txt")], "protein") == len(text)
    assert text_tokens(["-"]) is None
    with pytest.raises(UserError, match=r"none\.txt"):
        text_tokens([str(tmp_path / "none.txt")])


def test_a_processor_is_as_fast_as_a_small_step_of_training_is(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = list[object]()

    def timed(run: Callable[[], object]) -> float:
        steps.extend((run(), run()))
        return 2.0

    monkeypatch.setattr(speed, "least_seconds", timed)
    model = replace(PRESETS["micro"].model, layers=1, vocab_size=speed.ENTRIES)
    a_token = flops_of_token(replace(PRESETS["micro"], model=model))
    machine = budget.measured({"dtype": "float32"})
    assert machine.flops == pytest.approx(a_token * 32 * 128 / 2)
    assert len(steps) == 2
    assert machine.layout.data == jax.device_count()


def test_an_accelerator_is_as_fast_as_a_share_of_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(speed, "least_seconds", lambda run: 2.0)
    products = 2 * 8192 * 4096**2 / 2
    assert budget.measured({"dtype": "float32"}).flops == budget.OF_PRODUCTS * products * jax.device_count()


def test_the_command_prints_its_choice_unless_there_is_nothing_to_choose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("the river sees a green stone\n" * 300)
    line = ["--data", str(tmp_path / "a.txt"), "--budget", "1h"]
    config = COMMAND.read(line)
    said = capsys.readouterr().err
    assert (config.preset, config.budget, config.steps) == ("nano", "1h", 0)
    assert "chosen for 1h: preset nano, 2 layers of 128" in said
    assert COMMAND.read([*line, "--preset", "nano"]) == config
    assert (COMMAND.read(["--budget", "5s"]).preset, capsys.readouterr().err) == ("sentence", "")
    with pytest.raises(UserError, match="--heads"):
        COMMAND.read([*line, "--heads", "7"])
    assert "\n\n" not in capsys.readouterr().err, "nothing that fits is no choice to print"
    with pytest.raises(UserError, match="--mesh"):
        COMMAND.read([*line, "--mesh", "data=4096"])
    with pytest.raises(UserError, match="--batch"):
        COMMAND.read([*line, "--batch", "-4"])


def test_a_run_that_goes_on_chooses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(ROOT / "tests" / "golden" / "run", tmp_path / "run")
    config = COMMAND.read(["--resume", "--out", str(run), "--budget", "1h", "--steps", "0"])
    assert config == replace(read_run(run), resume=True, budget="1h", steps=0, out=str(run))
    assert capsys.readouterr().err == ""
