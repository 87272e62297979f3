"""The scripts behind docs/recipe.md: what their arms are, how they go on, and what they make of their records."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from support.paths import ROOT
from support.texts import sentences

sys.path.insert(0, str(ROOT / "benchmarks"))
import ablations
import time_to_loss
from ablations import Run
from common import arms, levers, texts
from common.levers import LEVERS, Arm, Lever
from common.machine import processor

from jax_mlm.cli.options import build
from jax_mlm.cli.parser import Parser
from jax_mlm.config import MaskConfig, TrainConfig
from jax_mlm.errors import UserError
from jax_mlm.presets import preset_for
from jax_mlm.train.__main__ import COMMAND

Record = dict[str, Any]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty page, with folders of results beside it."""
    monkeypatch.setattr(arms, "ROOT", tmp_path)
    monkeypatch.setattr(arms, "PAGE", tmp_path / "recipe.md")
    monkeypatch.setattr(ablations, "FOLDER", tmp_path / "ablations")
    monkeypatch.setattr(ablations, "COSTS", tmp_path / "costs.json")
    monkeypatch.setattr(time_to_loss, "RESULTS", tmp_path)
    parts = (
        f"<!-- {part} -->\nold\n<!-- end of {part} -->\n" for part in ("time to loss", "choices by cost", "ablations")
    )
    (tmp_path / "recipe.md").write_text("Before.\n" + "Between.\n".join(parts) + "After.\n")
    return tmp_path / "recipe.md"


@cache
def parser() -> Parser:
    return COMMAND.parser()


EVERY = [(preset, lever) for preset in LEVERS for lever in LEVERS[preset]]


def config_of(options: Sequence[str], preset: str = "tiny") -> TrainConfig:
    given = parser().read([*options, "--budget", "1m"])
    return build(TrainConfig, given, replace(preset_for(preset, given), steps=0))


class Measured:
    """Stands for the process of an arm: counts what it is asked for, and stops when it has to."""

    def __init__(self, losses: Sequence[float], stops_after: int = 99) -> None:
        self.losses, self.stops_after, self.jobs = list(losses), stops_after, list[Record]()

    def __call__(self, line: Sequence[str], job: Record, stopped: Callable[[], bool] = lambda: False) -> Record:
        assert not stopped()
        if len(self.jobs) == self.stops_after:
            raise KeyboardInterrupt
        self.jobs.append(job)
        loss = self.losses[len(self.jobs) - 1]
        known = {"loss": loss, "accuracy": 0.5, "bits_per_byte": 10 - loss, "steps": 9, "seconds": 60.0}
        return {**known, "dtype": "float32", "versions": {"jax": "1"}, "curve": [[6.0, 9.0, 0.1], [60.0, loss, 0.5]]}


# ---- arms ----------------------------------------------------------------------------------------


def test_arms_differ_from_the_defaults_in_one_way_and_have_files_of_their_own() -> None:
    for preset, lever in EVERY:
        base = config_of((), preset)
        assert lever.arms[0] == Arm(lever.arms[0].name)
        for arm in lever.arms[1:]:
            assert sum(map(bool, (arm.options, arm.how, arm.ramp))) == 1, arm
            assert (config_of(arm.options, preset) != base) == bool(arm.options), arm
            assert arm.how in {"", "mean", "apart", "depth", "random", *texts.TEXTS}, arm
    runs = [run for preset in LEVERS for run in ablations.screening(preset)]
    assert len({run.path("text") for run in runs}) == len(runs)
    assert [run.seed for run in runs if run.record == ablations.DEFAULTS] == [0, 1, 2] * len(LEVERS)


def test_ramps_end_with_the_preset() -> None:
    for preset, lever in EVERY:
        config = config_of((), preset)
        for arm in lever.arms:
            begins = [share for share, _ in arm.ramp]
            assert begins == sorted(begins), arm
            if arm.ramp:
                assert begins[0] == 0
                whole = {"batch": config.batch, "length": config.corpus.length}
                assert whole == {**whole, **arm.ramp[-1][1]}, arm


@pytest.mark.parametrize("preset", LEVERS)
def test_what_an_arm_costs_is_that_of_its_programs(preset: str) -> None:
    from common import costs

    by_name = levers.arms_by_name(preset)
    (own,) = costs.programs_of(preset, by_name[ablations.DEFAULTS])
    same = ("weight decay 0", "initialisation 0.01", "learning rates ×2", "schedule cosine", "replacement all [MASK]")
    same += ("embeddings random", "documents crossing", "text copies dropped", "averaging mean of the last fifth")
    same += ("attention and head at first random",)
    for name in same:
        assert costs.programs_of(preset, by_name[name]) == [own], name
    for lever in LEVERS[preset]:
        if lever.name in ("optimizer", "batch", "length", "vocabulary", "depth × width", "attention", "size"):
            assert all(costs.programs_of(preset, arm)[0][1] != own[1] for arm in lever.arms[1:]), lever
    ramp = costs.programs_of(preset, by_name["batch 8 → 16 → 32"])
    assert [(round(share, 3), program.batch) for share, program in ramp] == [(0.2, 8), (0.2, 16), (0.6, 32)]
    assert ramp[-1][1] == own[1]


@pytest.mark.parametrize("preset", LEVERS)
def test_shapes_of_different_depth_cost_the_same(preset: str) -> None:
    from jax_mlm.cost.flops import train_flops

    (lever,) = (lever for lever in LEVERS[preset] if lever.name.startswith("depth"))
    costs = []
    for arm in lever.arms:
        config = config_of((*arm.options, "--vocab-size", "8192"), preset)
        costs.append(train_flops(config.model, 128, config.model.layers * 128 * 128, 20, 128))
    assert max(costs) < 1.15 * min(costs)


def test_steps_cost_what_those_of_the_preset_do_and_rates_are_shares_of_their_own() -> None:
    costs = {"dtype": "float32", "presets": {"tiny": {"x": {"ratio": 1.25}}}}

    def options(arm: Arm, rate: float) -> list[str]:
        return ablations.options_of(Run("tiny", "x", arm, 1000, rate, 2), costs)

    found = options(Arm("x", ("--optimizer", "adamw")), 0.5)
    optim, default = config_of(found[2:-4]).optim, config_of(()).optim
    assert (optim.lr, optim.muon_lr) == (default.lr / 2, default.muon_lr / 2)
    assert optim.optimizer == "adamw"
    assert found[-4:] == ["--steps", "800", "--seed", "2"]
    optim = config_of(options(Arm("x", ("--lr", "4e-3")), 0.5)[2:-4]).optim
    assert (optim.lr, optim.muon_lr) == (2e-3, default.muon_lr / 2)
    assert "--lr" not in options(Arm("x"), 1.0)
    for preset, record in (("tiny", "y"), ("micro", "x")):
        lacks = f"nothing about {record} of {preset}: measure what steps take with --costs --preset {preset}"
        with pytest.raises(UserError, match=lacks):
            ablations.options_of(Run(preset, record, Arm(record), 1000), costs)


def test_recipes_of_others_are_as_their_sources_have_them() -> None:
    theirs, guide = (
        config_of(time_to_loss.OURS[arm], preset) for arm, preset in (("run-mlm", "tiny"), ("guide", "bert-base"))
    )
    assert (theirs.batch, theirs.corpus.pack, theirs.mask) == (8, "plain", MaskConfig(mask_rate=0.15))
    assert theirs.model.global_every == 1
    assert (theirs.optim.optimizer, theirs.optim.lr, theirs.optim.schedule) == ("adamw", 5e-5, "linear")
    assert (theirs.optim.warmup, theirs.optim.beta2, theirs.optim.weight_decay) == (0, 0.999, 0)
    model, optim = guide.model, guide.optim
    assert (model.layers, model.width, model.heads, model.ff_width, model.dropout) == (3, 256, 4, 512, 0.1)
    assert (model.norm_first, model.positions, guide.corpus.length, guide.batch) == (False, "learned", 128, 128)
    assert (guide.mask.mask_rate, optim.optimizer, optim.lr, optim.schedule) == (0.25, "adamw", 5e-4, "constant")


# ---- going on ------------------------------------------------------------------------------------


def test_ablations_go_on_where_they_stopped_and_then_run_the_best_two(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lever = Lever("batch", (Arm("32"), Arm("16", ("--batch", "16")), Arm("64", ("--batch", "64"))))
    other = Lever("replacement", (Arm("80/10/10"), Arm("all", ("--mask-token", "1", "--mask-random", "0"))))
    monkeypatch.setitem(LEVERS, "tiny", (lever, other))
    (tmp_path / "valid.txt").write_text("\n".join("many words " * 40 for _ in range(3)))
    text = {"data": [f"{tmp_path}/wiki/x"], "valid": [f"{tmp_path}/valid.txt"], "jobs": 1, "steps": 0, "preset": "tiny"}
    given = argparse.Namespace(**text, finalists=False, only=())
    with pytest.raises(UserError, match=r"costs\.json is not there: measure what steps take with --costs first"):
        ablations.measure(given, Measured([]))
    names = (ablations.DEFAULTS, "batch 16", "batch 64", "replacement all")
    known = {name: {"ratio": 1.0} for name in names}
    arms.keep(ablations.COSTS, {"dtype": "float32", "presets": {"tiny": known}})
    with pytest.raises(KeyboardInterrupt):
        ablations.measure(given, Measured([5, 5.25, 4.75, 4], stops_after=4))
    assert sorted(path.name for path in ablations.FOLDER.iterdir()) == [
        "wiki-tiny-batch-16-700-rate1-seed0.json",
        *(f"wiki-tiny-defaults-700-rate1-seed{seed}.json" for seed in (0, 1, 2)),
    ]
    assert list(ablations.finals("tiny", "wiki")) == []
    rest = Measured([6, 7])
    ablations.measure(given, rest)
    assert [("64" in job["options"], "--mask-token" in job["options"]) for job in rest.jobs] == [
        (True, False),
        (False, True),
    ]
    last = Measured([4.5] * 3 + [3.0, 3.5, 4.0] + [6.0] * 12)
    ablations.measure(argparse.Namespace(**text, finalists=True, only=()), last)
    chosen = {run.record for run in ablations.finals("tiny", "wiki")}
    assert chosen == {"batch 16", ablations.DEFAULTS, "replacement all"}
    assert len(last.jobs) == 18
    lines = page.read_text().splitlines()
    assert lines[0] == "Before."
    assert lines[-1] == "After."
    assert "old" in page.read_text().split("Between.")[0]
    assert "The preset with 3 seeds: 5.000 ± 0.250 nats, accuracy 0.500 ± 0.000, 5.000 ± 0.250 bits" in page.read_text()
    (sixteen,) = (line for line in lines[lines.index("Between.") :] if line.startswith("| batch | 16 | 4.000 | 0"))
    assert sixteen == "| batch | 16 | 4.000 | 0.500 | 6.000 | " \
        "3.500 ± 0.500 | 0.500 ± 0.000 | 6.500 ± 0.500 | ×0.5 | 9 steps, at 1% of the cost |"  # fmt: skip
    assert "| batch | 64 | 6.000 | 0.500 | 4.000 |  |  |  |  | 9 steps, at 1% of the cost |" in lines
    assert {run.record for run in ablations.screening("tiny", ["replacement"])} == {
        ablations.DEFAULTS,
        "replacement all",
    }
    assert ablations.by_steps(ablations.all_records()).splitlines() == [
        "| `tiny`, wiki | as 700 steps | as 1,400 steps |",
        "|---|---|---|",
        "| the preset | 5.000 | 6.000 |",
        "| batch 16 | 4.000 | 4.500 |",
        "| batch 64 | 6.000 |  |",
    ]
    assert [run.steps for run in ablations.screening("tiny", ["batch"], 300)] == [300, 300, 300]
    assert [run.record for run in ablations.screening("tiny", ["batch 16"])] == ["batch 16"]
    listed = [line for line in ablations.listed(ablations.all_records()).splitlines() if line.startswith("tiny")]
    assert listed[0].endswith("wiki: 3 of 3, final 6 of 6")
    assert listed[2].endswith("wiki: 1 of 1, final 0 of 6")
    record = json.loads((ablations.FOLDER / "wiki-tiny-batch-16-700-rate1-seed0.json").read_text())
    assert str(tmp_path) not in json.dumps(record)


def test_an_arm_that_fails_ends_those_beside_it_and_begins_none(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {name: {"ratio": 1.0} for name in levers.arms_by_name("micro")}
    arms.keep(ablations.COSTS, {"dtype": "float32", "presets": {"micro": known}})
    (tmp_path / "valid.txt").write_text("many words " * 40)
    text = {
        "data": [f"{tmp_path}/wiki/x"],
        "valid": [f"{tmp_path}/valid.txt"],
        "only": (),
        "steps": 0,
        "preset": "micro",
    }
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    both, used = Barrier(2, timeout=30), list[Any]()

    def run(line: Sequence[str], job: Record, stopped: Callable[[], bool]) -> Record:
        used.append(job["cores"])
        if both.wait() == 0:
            raise SystemExit("error: one failed")
        sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
        return arms.answer(sleeping, {}, stopped)

    began = time.monotonic()
    with pytest.raises(SystemExit):
        ablations.measure(argparse.Namespace(**text, jobs=2, finalists=False), run)
    assert time.monotonic() - began < 30
    assert sorted(used) == [[0], [1]]
    assert not ablations.FOLDER.exists()


def test_arms_at_a_time_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 1, 2, 7})
    assert ablations.cores(1) == [[]]
    assert ablations.cores(2) == [[1, 3], [2, 7]]


def test_texts_are_made_of_what_there_is(tmp_path: Path) -> None:
    documents = [
        "Chapter 1",
        'He left. "Why?" she said. It rained.',
        "12",
        "Mr. Pott spoke (at last.) Then not",
        "so he did.",
    ]
    assert list(texts.sentences(documents[1:2])) == ["He left.", '"Why?" she said.', "It rained."]
    assert list(texts.prose(documents)) == [documents[1], documents[3], documents[4]]
    assert list(texts.prose([" = Robert = ", " He left . ", " It is ( at last ) . "])) == [
        " He left . ",
        " It is ( at last ) . ",
    ]
    assert sorted(texts.shuffled(documents)) == sorted(documents)
    assert texts.shuffled(documents) != documents
    assert texts.shuffled(documents) == texts.shuffled(iter(documents))
    (tmp_path / "a.txt").write_text("\n".join(documents) + "\n")
    files = [str(tmp_path / "a.txt")]
    assert texts.text_for("", files, tmp_path) == files
    (made,) = texts.text_for("prose", files, tmp_path)
    assert Path(made).read_text().splitlines() == list(texts.prose(documents))


def test_vocabularies_are_judged_by_bits_per_byte(page: Path) -> None:
    (lever,) = (lever for lever in LEVERS["micro"] if lever.name == "vocabulary")
    for number, arm in enumerate(lever.arms):
        run = Run("micro", ablations.name_of(lever, arm), arm, ablations.STEPS["micro"])
        arms.keep(run.path("wiki"), {"loss": number, "bits_per_byte": -number})
    assert [arm.name for _, arm in ablations.best_two("micro", lever, "wiki")] == ["32,768", "16,384"]


def shared(fixed: str, result: Path) -> time_to_loss.Given:
    return time_to_loss.Given("tiny", 32, "bfloat16", fixed, "two cores", str(result))


def test_time_to_loss_goes_on_and_tunes_its_peer_at_half_the_time(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_to_loss, "prepare", lambda options, result, folder: shared(fixed, result))
    monkeypatch.setattr(time_to_loss, "has", lambda python, modules: True)
    fixed, text = "hash", {"data": [f"{tmp_path}/wiki/x"], "valid": ["y"], "budget": "1m", "preset": "", "only": None}
    given = argparse.Namespace(**text, peer_python="peer")
    with pytest.raises(KeyboardInterrupt):
        time_to_loss.measure(given, Measured([3.0, 6.0, 5.5, 5.0, 4.0], stops_after=5))
    rest = Measured([4.5, 4.7, 3.8, 5.2])
    time_to_loss.measure(given, rest)
    peers = [job for job in rest.jobs if "learning_rate" in job]
    assert [(job["learning_rate"], job["budget"]) for job in peers] == [(2e-3, 30), (4e-3, 30), (1e-3, 60)]
    shown = page.read_text()
    assert "| Trainer, tuned | float32 | 9 | 3.800 | 0.500 | 60 s | 1/1.0 |" in shown
    assert "0.0005: 5.000, 0.001: 4.000, 0.002: 4.500, 0.004: 4.700" in shown
    assert "(../benchmarks/results/time-to-loss-wiki-1m.png)" in shown
    assert (tmp_path / "time-to-loss-wiki-1m.png").stat().st_size > 5_000
    monkeypatch.setattr(time_to_loss, "plot", lambda result, file: None)
    time_to_loss.measure(given, Measured([]))
    seen = list[str]()
    monkeypatch.setattr(
        time_to_loss, "prepare", lambda options, result, folder: (seen.extend(options), shared(fixed, result))[1]
    )
    time_to_loss.measure(argparse.Namespace(**{**vars(given), "preset": "tiny"}), Measured([3.0] * 9))
    assert seen[-2:] == ["--preset", "tiny"]
    assert (tmp_path / "time-to-loss-wiki-1m-tiny.json").is_file()
    assert "wiki, 1m, layers of the preset tiny, two cores:" in page.read_text()
    fixed = "other"
    with pytest.raises(UserError, match="another fixed, hash, not other: move it away"):
        time_to_loss.measure(given, Measured([]))


def test_without_a_peer_the_other_arms_are_measured(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_to_loss, "prepare", lambda options, result, folder: shared("hash", result))
    monkeypatch.setattr(time_to_loss, "plot", lambda result, file: None)
    text = {"data": [f"{tmp_path}/wiki/x"], "valid": ["y"], "budget": "1m", "preset": "", "only": None}
    time_to_loss.measure(argparse.Namespace(**text, peer_python=None), Measured([3.0, 4.0, 5.0]))
    assert "left out: trainer-tuned (--peer-python names no Python for them)" in capsys.readouterr().err
    assert "Not measured: Trainer, run_mlm's defaults; Trainer, tuned.\n" in page.read_text()
    assert "| Trainer" not in page.read_text()
    assert "| keras-hub's guide, through jax_mlm | float32 | 9 | 5.000 | 0.500 | 60 s | 1/1.0 |" in page.read_text()


def test_the_first_measurement_as_low_as_a_loss() -> None:
    curve = [[1.0, 9.0, 0.0], [2.0, 5.0, 0.0], [4.0, 5.5, 0.0], [8.0, 3.0, 0.0]]
    assert [time_to_loss.reached(curve, loss) for loss in (9.5, 5.2, 3.0, 2.9)] == [1.0, 2.0, 8.0, None]


# ---- the clock, and what is examined -------------------------------------------------------------


def test_validation_stops_the_clock_and_comes_at_its_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    from common.timed import Clock, MarkedPace

    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meta = {"step": 0, "elapsed": 0.0, "horizon": 0}
    pace = MarkedPace(0, 10.0, 0, meta, 4.0, stopping=Clock(), marks=[0.1, 0.2, 0.5])
    due = []
    for done in range(1, 11):
        now += 0.75
        pace.measure(done)
        if pace.evaluation_due(done):
            due.append(pace.elapsed())
            with pace.evaluating():
                now += 30
    assert due == [1.5, 2.25, 5.25]
    assert pace.elapsed() == pytest.approx(7.5)
    assert pace.horizon == 13, "ten seconds of steps, of which validations take nothing"


def test_without_a_budget_marks_are_shares_of_the_steps() -> None:
    from common.timed import Clock, MarkedPace

    meta = {"step": 0, "elapsed": 0.0, "horizon": 0}
    pace = MarkedPace(10, None, 0, meta, 4.0, stopping=Clock(), marks=[0.25, 0.5, 0.55])
    assert [done for done in range(1, 11) if pace.evaluation_due(done)] == [3, 5, 6]


def test_q_k_and_v_apart_are_orthogonalised_as_matrices_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax.numpy as jnp
    from common.timed import orthogonalise_apart

    from jax_mlm.train import optim

    monkeypatch.setattr(optim, "_every_orthogonalised", optim._every_orthogonalised)  # put back afterwards
    draw = np.random.default_rng(0)
    fused, plain = (jnp.asarray(draw.normal(size=(8, width)), jnp.float32) for width in (24, 8))
    orthogonalise_apart()
    done = optim._every_orthogonalised({"qkv": {"kernel": fused}, "out": {"kernel": plain}}, optim.PLAIN)
    expected = [optim.orthogonalised(part) for part in (*jnp.split(fused, 3, axis=1), plain)]
    np.testing.assert_allclose(done["qkv"]["kernel"], np.concatenate(expected[:3], 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(done["out"]["kernel"], expected[3], rtol=1e-5, atol=1e-6)


def test_what_ends_the_parts_of_a_layer_is_smaller_at_first() -> None:
    import jax
    from common.timed import smaller_with_depth

    from jax_mlm.model.heads import init_params
    from jax_mlm.model.params import leaves

    model = replace(config_of(("--layers", "2", "--width", "64", "--vocab-size", "64")).model, vocab_size=64)
    before = init_params(model, jax.random.key(0))
    after, before = leaves(smaller_with_depth(before, 2)), leaves(before)
    changed = {path for path, x in before.items() if not np.array_equal(x, after[path])}
    ends = (("attention", "out"), ("mlp", "down"))
    assert changed == {(f"layer_{i}", *end, "kernel") for i in (0, 1) for end in ends}
    for path in changed:
        np.testing.assert_allclose(after[path], before[path] / 2, rtol=1e-6)


# ---- what is committed ---------------------------------------------------------------------------


def test_records_that_are_committed_are_whole_and_the_page_shows_them() -> None:
    records, page = ablations.all_records(), (ROOT / "docs" / "recipe.md").read_text()
    for preset, costs in ablations.costs()["presets"].items():
        mine = [record["arm"] for record in records if record["preset"] == preset]
        assert set(mine) <= set(costs) <= set(levers.arms_by_name(preset))
        assert not mine or mine.count(ablations.DEFAULTS) >= len(ablations.SEEDS)
    for record in records:
        assert record["preset"] in LEVERS
        assert 0 < record["accuracy"] < 1 < record["loss"]
        assert record["steps"] == round(record["cost"] / record["ratio"])
        assert {"bits_per_byte", "steps", "options", "versions", "processor", "commit", "seed", "rate"} <= set(record)
    assert arms.filled(page, "ablations", ablations.sections(records)) == page
    assert arms.filled(page, "choices by cost", ablations.by_steps(records)) == page
    parts = []
    for path in sorted(time_to_loss.RESULTS.glob("time-to-loss-*.json")):
        result = json.loads(path.read_text())
        assert set(result["arms"]) <= set(time_to_loss.ARMS)
        for record in result["arms"].values():
            seconds = [point[0] for point in record["curve"]]
            assert seconds == sorted(seconds)
            assert {"loss", "accuracy", "settings", "versions", "processor", "steps"} <= set(record)
        assert path.with_suffix(".png").is_file()
        parts.append(time_to_loss.section(path, result))
    assert arms.filled(page, "time to loss", "\n\n".join(parts) or time_to_loss.NOTHING) == page


# ---- for real ------------------------------------------------------------------------------------

SMALL = ("--layers", "1", "--width", "32", "--heads", "2", "--ff-width", "32", "--tokenizer-limit", "256")


def test_a_result_is_continued_with_its_batch_and_all_that_its_arms_read_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(sentences(300))
    (tmp_path / "before.json").write_text('{"preset": "tiny", "batch": 8}')
    options = [*SMALL, "--data", f"{tmp_path}/text.txt", "--valid", f"{tmp_path}/text.txt", "--budget", "1m"]
    job = {"options": options, "result": f"{tmp_path}/before.json", "folder": str(tmp_path)}
    time_to_loss.preparer(json.dumps(job))
    found = time_to_loss.Given(**json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert (found.preset, found.batch, found.device) == ("tiny", 8, processor())
    assert found.result == job["result"]
    for name in ("tokenizer.json", "vocabulary.json", "config.json", "train.npy", "valid.npz"):
        assert (tmp_path / name).is_file(), name


@pytest.mark.slow
def test_arms_are_trained_and_their_records_kept(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    mean = Arm("mean of the last fifth", SMALL, how="mean")
    ramp = Arm("ramp", SMALL, ramp=((0, {"batch": 8, "length": 64}), (0.5, {"batch": 32, "length": 128})))
    of = (Lever("averaging", (Arm("none", SMALL), mean)), Lever("batch", (Arm("32", SMALL), ramp)))
    monkeypatch.setitem(LEVERS, "micro", of)
    monkeypatch.setattr(ablations, "SEEDS", (0,))
    monkeypatch.setitem(ablations.STEPS, "micro", 40)
    monkeypatch.setattr(ablations, "PIECE", 30)
    monkeypatch.setattr("os.environ", environment)
    (tmp_path / "text.txt").write_text(sentences(300))
    files = {"data": [f"{tmp_path}/text.txt"], "valid": [f"{tmp_path}/text.txt"]}
    ratios = {ablations.DEFAULTS: 1.0, "averaging mean of the last fifth": 1.0, "batch ramp": 0.5}
    known = {name: {"ratio": each} for name, each in ratios.items()}
    arms.keep(ablations.COSTS, {"dtype": "float32", "presets": {"micro": known}})
    ablations.measure(argparse.Namespace(**files, preset="micro", jobs=2, steps=0, finalists=False, only=()))
    found = {record["arm"]: record for record in ablations.all_records()}
    assert found.keys() == ratios.keys()
    for name, record in found.items():
        assert record["steps"] == round(40 / ratios[name])
        assert 0 < record["bits_per_byte"] < 8
        assert record["processor"] == processor()
    averaged = found["averaging mean of the last fifth"]
    assert averaged["states"] == 9, "the last fifth of 40 steps, and the end"
    assert averaged["loss"] != averaged["last state"]["loss"]
    whole = found[ablations.DEFAULTS]
    assert found["batch ramp"]["tokens"] / found["batch ramp"]["steps"] < 0.7 * whole["tokens"] / whole["steps"]


@pytest.mark.slow
def test_what_a_step_takes_is_measured_beside_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    from common import costs

    monkeypatch.setattr(costs, "TURNS", 3)
    wanted = (ablations.DEFAULTS, "size 2×128", "weight decay 0")
    some = {name: arm for name, arm in levers.arms_by_name("tiny").items() if name in wanted}
    said: list[str] = []
    found = costs.measured(ablations.__file__, "tiny", some, "float32", said.append)
    assert said == ["size 2×128 …"], "the others have the preset's program"
    assert found["weight decay 0"] == found[ablations.DEFAULTS] == {"ratio": 1.0, "quartiles": [1.0, 1.0]}
    low, high = found["size 2×128"]["quartiles"]
    assert 0.05 < low <= found["size 2×128"]["ratio"] <= high < 0.7


@pytest.mark.slow
def test_transformers_has_the_same_loss_on_the_masked_documents(tmp_path: Path, environment: dict[str, str]) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch: pip install 'jax-mlm[reference]'")
    pytest.importorskip("accelerate")
    import jax
    from time_to_loss_peer import Held
    from transformers import ModernBertForMaskedLM

    from jax_mlm.data.batches import pack_rows
    from jax_mlm.data.dataset import open_dataset
    from jax_mlm.evals.heldout import evaluate_rows, evenly_spaced
    from jax_mlm.hf.weights import WEIGHTS, write_params
    from jax_mlm.model.heads import init_params, make_forward
    from jax_mlm.tasks.mlm import make_examine

    (tmp_path / "text.txt").write_text(sentences(300))
    options = [*SMALL, "--preset", "tiny", "--init-std", "0.2", "--eval-rows", "3", "--budget", "1m"]
    config = COMMAND.read([*options, "--data", f"{tmp_path}/text.txt", "--valid", f"{tmp_path}/text.txt"])
    time_to_loss.export(tmp_path, config)
    data = open_dataset(config, tmp_path)
    params = init_params(data.config.model, jax.random.key(0))
    write_params(tmp_path / WEIGHTS, jax.device_get(params), data.config.model)
    rows = pack_rows(data.valid.files, data.vocabulary, time_to_loss.LENGTH, "document")
    examine = jax.jit(make_examine(make_forward(data.config.model), data.vocabulary, time_to_loss.LENGTH))
    held = Held(tmp_path / "valid.npz", torch.device("cpu"))
    model = ModernBertForMaskedLM.from_pretrained(tmp_path)
    for indices, part in zip(evenly_spaced(len(rows), 3), (held.part, held.rest), strict=True):
        ours, (loss, right, count) = evaluate_rows(examine, params, rows, indices, 8), held.sums(model, part)
        assert (right, count) == (ours.correct, ours.count)
        assert loss == pytest.approx(ours.loss_sum, rel=1e-4)
