"""Numbers go wrong: an update that would do harm is skipped, a run that diverges goes back once, and then it stops."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.eight import on_eight_devices
from support.models import assert_trees_equal
from support.poison import NAN, SPIKE, poison
from support.runs import TINY, save_run, train_line
from support.steps import tree_difference

from jax_mlm.config import OptimConfig
from jax_mlm.data.batches import Batch
from jax_mlm.data.tokenizer import load_tokenizer
from jax_mlm.evals.heldout import Result, Validator
from jax_mlm.model.heads import init_params
from jax_mlm.run.checkpoint import load_params, open_checkpoints, restore
from jax_mlm.run.directory import read_run
from jax_mlm.run.lock import NAME as LOCK
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.tasks.task import Task
from jax_mlm.train import loop
from jax_mlm.train.meter import Meter
from jax_mlm.train.optim import make_optimizer, make_schedule
from jax_mlm.train.step import TrainState, init_state, make_train_step
from jax_mlm.train.watch import LEAST, PATIENCE, WINDOW, Watch

# ---- one step ------------------------------------------------------------------------------------

ADDED = {"sound": 0.0, "loss": math.nan, "infinity": math.inf, "gradient": 0.0, "spike": 0.0}
"""What is added to the objective in each kind of step."""


@jax.custom_vjp
def with_gradient(x: Any, gradient: Any) -> Any:
    return x


with_gradient.defvjp(lambda x, gradient: (x, gradient), lambda gradient, g: (g + gradient, jnp.zeros_like(gradient)))


class Toy(NamedTuple):
    x: Any
    added: Any
    gradient: Any


def toy() -> Task[Toy]:
    """Return a task of a few numbers, which compiles at once; the batch's words say what goes wrong."""

    def prepare(batch: Batch, keys: Any, step: Any, horizon: Any) -> Toy:
        drawn = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
        return Toy(drawn, jnp.asarray(batch.words)[:, 0], jnp.asarray(batch.words)[:, 1])

    def loss(params: Any, frozen: Any, example: Toy, keys: Any) -> Any:
        w = with_gradient(params["layer_0"]["kernel"], example.gradient.sum())
        off = jnp.square(example.x @ w + params["bias"] - 1.0).sum(-1)
        sums = Metrics(off.sum(), jnp.zeros(()), jnp.float32(len(off)))
        return sums.loss_sum + example.added.sum(), sums

    def init(key: Any) -> Any:
        return {"layer_0": {"kernel": jax.random.normal(key, (4, 4))}, "bias": jnp.zeros(4)}

    return Task(init, prepare, loss, lambda params, batch: loss(params, None, batch, None)[1], lambda *_: {}, 1)


def toy_step(optimizer: str = "adamw", accumulate: int = 1) -> tuple[Any, TrainState]:
    config = OptimConfig(optimizer=optimizer, schedule="constant", warmup=0.0)
    tx = make_optimizer(config)
    step = jax.jit(make_train_step(toy(), tx, make_schedule(config), jax.random.key(7), accumulate))
    return step, init_state(toy().init(jax.random.key(0)), tx)


def toy_batch(kind: str = "sound") -> Batch:
    """Return eight rows, of which the last goes wrong: one microbatch of several, or one device, has it."""
    words = np.zeros((8, 2), np.float32)
    words[-1] = ADDED[kind], math.nan if kind == "gradient" else 0.0
    return Batch(*[np.zeros((8, 2), np.int32)] * 3, words, np.arange(8, dtype=np.int32))


def toy_steps(optimizer: str, accumulate: int, place: Callable[[Any], Any] = lambda x: x) -> list[Any]:
    """Return the kind, the state before and after, and the metrics, of steps that go wrong in every way."""
    step, state = toy_step(optimizer, accumulate)
    taken = []
    for kind in ("sound", *ADDED, "sound"):
        limit = jnp.float32(0.1 if kind == "spike" else math.inf)
        after, metrics = step(state, place(toy_batch(kind)), jnp.int32(100), None, limit, jnp.int32(0))
        taken.append(jax.device_get((kind, state, after, metrics)))
        state = after
    return taken


def assert_skipped(steps: list[Any]) -> None:
    for kind, before, after, metrics in steps:
        assert after.step == before.step + 1
        assert metrics.skipped == (kind != "sound"), kind
        if kind == "sound":
            assert tree_difference(before.params, after.params) > 0
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
        else:
            assert_trees_equal(after[1:], before[1:])


@pytest.mark.parametrize(
    ("optimizer", "accumulate"),
    [("adamw", 1), ("muon", 4), pytest.param("lamb", 2, marks=pytest.mark.slow)],
)
def test_a_step_that_goes_wrong_changes_nothing_but_its_number(optimizer: str, accumulate: int) -> None:
    assert_skipped(toy_steps(optimizer, accumulate))


EIGHT = """
import pickle, sys
import jax
from jax_mlm.parallel.mesh import make_mesh, make_placer
from faults.test_numbers import toy_steps
assert jax.device_count() == 8
steps = toy_steps("muon", 1, make_placer(make_mesh(8, 1)))
sys.stdout.buffer.write(pickle.dumps([(kind, *map(tuple, more)) for kind, *more in steps]))
"""


@pytest.mark.slow
def test_one_device_of_eight_that_goes_wrong_makes_all_skip() -> None:
    printed = on_eight_devices(EIGHT)
    eight = [(k, TrainState(*b), TrainState(*a), Metrics(*m)) for k, b, a, m in pickle.loads(printed)]
    assert_skipped(eight)
    for (*_, one, _), (*_, theirs, _) in zip(toy_steps("muon", 1), eight, strict=True):
        assert tree_difference(one.params, theirs.params) < 2e-5


def test_a_limit_and_another_order_compile_nothing_and_the_order_has_other_masks() -> None:
    step, state = toy_step()

    def loss(limit: float, order: int) -> float:
        arguments = (state, toy_batch(), jnp.int32(9), None, jnp.float32(limit), jnp.int32(order))
        return float(step(*arguments)[1].loss_sum)

    assert loss(math.inf, 0) == loss(3.0, 0) != loss(math.inf, 1)
    assert step._cache_size() == 1


def test_the_meter_counts_what_was_skipped_and_reports_the_rest() -> None:
    told: list[tuple[float, bool]] = []
    meter = Meter(None, lambda *step: told.append(step))
    for loss, skipped in ((6.0, 0.0), (math.nan, 1.0), (8.0, 0.0), (900.0, 1.0)):
        meter.add(Metrics(*map(np.float32, (loss, 1, 2)), {"soft": np.float32(loss)}, np.float32(skipped)), 10)
    figures = meter.read(wait=True)
    assert (figures["loss"], figures["soft"], figures["tokens"], figures["skipped"]) == (3.5, 3.5, 40, 2)
    np.testing.assert_equal(told, [(3.0, False), (math.nan, True), (4.0, False), (450.0, True)])
    meter.add(Metrics(*map(np.float32, (math.nan, 1, 2)), {}, np.float32(1)), 10)
    only = meter.read(wait=True)
    assert only["skipped"] == 1
    assert not {"loss", "accuracy"} & set(only), "there was no update to report"
    meter.add(Metrics(*map(np.float32, (6, 1, 2)), {}, np.float32(0)), 10)
    assert "skipped" not in meter.read(wait=True)


# ---- the watch -----------------------------------------------------------------------------------

START: Any = {"step": 0, "elapsed": 0.0, "horizon": 0}


def test_a_limit_is_a_multiple_of_the_median_whenever_the_step_before_is_read() -> None:
    """A run that reads each loss at once, one that reads it a step later, and one resumed at every step agree."""
    losses = [3.0 + math.sin(step) for step in range(WINDOW + 60)]
    losses[50], losses[60] = 1e9, math.nan
    early, late, resumed = (Watch(2.0, START) for _ in range(3))
    for step in range(len(losses)):
        known = [loss for loss in losses[max(step - 1 - WINDOW, 0) : max(step - 1, 0)] if math.isfinite(loss)]
        expected = 2.0 * float(np.median(known)) if len(known) >= LEAST else math.inf
        assert early.limit(step) == late.limit(step) == resumed.limit(step) == pytest.approx(expected)
        if step:
            late.took(losses[step - 1], False)
        early.took(losses[step], False)
        resumed.took(losses[step], False)
        resumed = Watch(2.0, json.loads(json.dumps(resumed.meta({**START, "step": step + 1}), allow_nan=False)))
    assert Watch(0.0, START).limit(0) == math.inf


def test_what_is_skipped_in_a_row_is_counted_over_resumptions() -> None:
    watch = Watch(0.0, START)
    for number in range(PATIENCE):
        assert not watch.diverged
        watch.took(math.nan, True)
        watch = Watch(0.0, watch.meta({**START, "step": number + 1}))
    assert watch.diverged
    watch.took(1.0, False)
    assert watch.diverged, "a sound step later does not hide it from a run that reads late"


# ---- a run ---------------------------------------------------------------------------------------

STEPS, EVERY = 40, 10
OPTIONS = [*TINY, "--steps", STEPS, "--eval-every", EVERY]


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, read by a parser that takes JSON only."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]


def of_kind(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(run) if line["kind"] == kind]


def figures(run: Path) -> list[dict[str, Any]]:
    """Return what does not depend on the clock."""
    timed = {"seconds", "waited", "tokens_per_second", "mfu"}
    return [{key: value for key, value in line.items() if key not in timed} for line in lines_of(run)]


def state_of(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the newest checkpoint's arrays, and its meta without the clock."""
    config = read_run(run)
    tx = make_optimizer(config.optim)
    shapes = jax.eval_shape(lambda: init_state(init_params(config.model, jax.random.key(0)), tx))
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    with open_checkpoints(run) as checkpoints:
        found = restore(checkpoints, like)
    assert found is not None
    return jax.device_get(found[0]), {name: value for name, value in found[1].items() if name != "elapsed"}


def assert_finite(run: Path, step: int) -> None:
    """Assert that a run's newest checkpoint is that of a step, and finite."""
    state, meta = state_of(run)
    assert meta["step"] == step
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def assert_same_run(one: Path, other: Path) -> None:
    (state, meta), (their_state, their_meta) = state_of(one), state_of(other)
    assert meta == their_meta
    assert_trees_equal(state, their_state)
    assert figures(one) == figures(other)


def the_error(capsys: Any) -> str:
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    return line


def ask_to_stop(patch: pytest.MonkeyPatch, when: Callable[[], bool]) -> None:
    """Ask the runs that follow to stop, as Ctrl-C does; `when` is asked before each step."""

    def stopping() -> AbstractContextManager[Callable[[], int]]:
        return nullcontext(lambda: signal.SIGINT if when() else 0)

    patch.setattr("jax_mlm.parallel.stop.stop_request", stopping)


def bad_once(step: int, order: int) -> int:
    """Three updates that pass, and a run that diverges until it goes back."""
    return NAN if step in {3, 5, 6} or (step >= 25 and not order) else 0


class RolledBack(NamedTuple):
    run: Path
    kills: dict[str, Path]


@pytest.fixture(scope="module")
def rolled_back(text: Path, tmp_path_factory: pytest.TempPathFactory) -> RolledBack:
    """A run that goes back from step 35 to step 20 and ends; and copies of it, as kills at three moments leave it."""
    folder = tmp_path_factory.mktemp("rolled-back")
    run, kills = folder / "run", {}

    def killed(moment: str) -> None:
        kills[moment] = folder / moment
        without_lock = shutil.ignore_patterns(LOCK)  # whose owner is alive here
        shutil.copytree(run, kills[moment], ignore=without_lock)

    with pytest.MonkeyPatch.context() as patch:
        poison(patch, bad_once)
        record, save = loop.Recorder.rolled_back, loop.save

        def rolled(self: Any, *arguments: Any) -> None:
            killed("before the log forgets")
            record(self, *arguments)
            killed("after the return")

        def saved(checkpoints: Any, state: Any, meta: Any, loss: Any) -> None:
            save(checkpoints, state, meta, loss)
            if meta["order"] and meta["step"] == 3 * EVERY:
                checkpoints.wait_until_finished()
                killed("after the next save")

        patch.setattr(loop.Recorder, "rolled_back", rolled)
        patch.setattr(loop, "save", saved)
        assert train_line(*OPTIONS, "--data", text, "--out", run) == 0
    return RolledBack(run, kills)


def test_a_run_that_diverges_goes_back_once_with_another_order(rolled_back: RolledBack) -> None:
    run = rolled_back.run
    assert of_kind(run, "rollback") == [{"kind": "rollback", "step": 20, "from": 25 + PATIENCE + 1}]
    keys = [(line["kind"], line["step"]) for line in lines_of(run)]
    assert len(keys) == len(set(keys))
    assert keys[-1] == ("final", STEPS)
    _, meta = state_of(run)
    assert (meta["order"], meta["good"], meta["skipped"]) == (1, STEPS, 0)
    assert_finite(run, STEPS)
    assert "went on from step 20" in (run / "report.html").read_text()


def test_skipped_updates_are_counted_where_they_happen(rolled_back: RolledBack) -> None:
    train = of_kind(rolled_back.run, "train")
    assert {line["step"]: line["skipped"] for line in train if "skipped" in line} == {5: 1, 10: 2}
    assert all(line["loss"] > 0 for line in train)
    assert "updates skipped" in (rolled_back.run / "report.html").read_text()


@pytest.mark.parametrize(
    "moment",
    [
        "after the return",
        pytest.param("before the log forgets", marks=pytest.mark.slow),
        pytest.param("after the next save", marks=pytest.mark.slow),
    ],
)
def test_a_kill_around_the_return_changes_nothing(
    moment: str, rolled_back: RolledBack, tmp_path: Path, monkeypatch: Any
) -> None:
    poison(monkeypatch, bad_once)
    shutil.copytree(rolled_back.kills[moment], tmp_path / "run")
    assert train_line("--resume", "--out", tmp_path / "run") == 0
    assert_same_run(tmp_path / "run", rolled_back.run)


@pytest.mark.slow
def test_a_stop_while_updates_are_skipped_changes_nothing(
    rolled_back: RolledBack, text: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    poison(monkeypatch, bad_once)
    asked = iter(range(30))
    with pytest.MonkeyPatch.context() as patch:
        ask_to_stop(patch, lambda: next(asked, None) is None)
        assert train_line(*OPTIONS, "--data", text, "--out", tmp_path / "run") == 130
    _, meta = state_of(tmp_path / "run")
    assert (meta["step"], meta["good"], meta["skipped"]) == (30, 20, 5)
    assert train_line("--resume", "--out", tmp_path / "run") == 0
    (state, meta), (theirs, their_meta) = state_of(tmp_path / "run"), state_of(rolled_back.run)
    assert meta == their_meta
    assert_trees_equal(state, theirs)


def test_a_run_that_diverges_again_stops_with_one_line_and_its_good_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    poison(monkeypatch, lambda step, order: NAN if step >= 25 else 0)
    assert train_line(*OPTIONS, "--data", text, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.count("back to step 20") == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    for word in ("the run diverged", "--lr", "--warmup", "--data", "last good checkpoint is step 20"):
        assert word in line
    assert_finite(tmp_path / "run", 20)
    assert [line["step"] for line in of_kind(tmp_path / "run", "valid")] == [10, 20, 30], "measured, but not saved"


@pytest.mark.slow
def test_a_learning_rate_that_overflows_ends_in_one_line(text: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    overflowing = ["--optimizer", "muon", "--lr", 1e30, "--muon-lr", 1e30, "--warmup", 0]
    assert train_line(*OPTIONS, "--data", text, "--out", run, *overflowing) == 2
    line = the_error(capsys)
    assert "try a lower --lr" in line
    assert "holds no good checkpoint" in line
    assert not list((run / "checkpoints").glob("*"))
    assert lines_of(run)


@pytest.mark.parametrize("name", ["lr", "muon_lr", "skip_spikes"])
def test_rates_that_are_not_numbers_are_refused(name: str) -> None:
    for value in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}"):
            OptimConfig(**{name: value})


@pytest.mark.parametrize("option", ["--init", "--distil"])
def test_weights_that_are_not_finite_are_not_continued(
    option: str, text: Path, tmp_path: Path, rolled_back: RolledBack, capsys: Any
) -> None:
    params = load_params(rolled_back.run)[1]
    params["token_table"] = np.where(np.arange(32) == 3, np.nan, params["token_table"])
    tokenizer = load_tokenizer(rolled_back.run / "tokenizer.json")
    bad = save_run(tmp_path / "bad", read_run(rolled_back.run).model, params, tokenizer)
    assert train_line(option, bad, "--data", text, "--steps", 2, "--out", tmp_path / "run") == 2
    assert f"{bad} holds weights that are not finite, in token_table" in the_error(capsys)
    assert not (tmp_path / "run").exists()


# ---- validation and checkpoints ------------------------------------------------------------------


@pytest.mark.slow
def test_a_validation_that_is_not_finite_is_never_recorded(text: Path, tmp_path: Path, monkeypatch: Any) -> None:
    calls, measure = [], Validator.__call__

    def once_nan(self: Any, params: Any) -> Result:
        calls.append(measure(self, params))
        return replace(calls[-1], loss_sum=math.nan) if len(calls) == 2 else calls[-1]

    monkeypatch.setattr(Validator, "__call__", once_nan)
    assert train_line(*OPTIONS, "--data", text, "--out", tmp_path / "run") == 0
    assert [(line["step"], line["from"]) for line in of_kind(tmp_path / "run", "rollback")] == [(10, 20)]
    assert [line["step"] for line in of_kind(tmp_path / "run", "valid")] == [10, 20, 30, 40]


def poison_state(patch: pytest.MonkeyPatch, first: int) -> list[int]:
    """From step `first` on, one number of the optimizer's state is NaN, which no loss shows; return the steps taken."""
    compile_program, taken = loop.compile_program, []

    def poisoning(*arguments: Any) -> Any:
        made = compile_program(*arguments)

        def step(state: TrainState, *more: Any) -> Any:
            after, metrics = made.step(state, *more)
            taken.append(len(taken) + 1)
            leaves, tree = jax.tree.flatten(after.opt_state)
            at = max(range(len(leaves)), key=lambda i: leaves[i].size)
            if taken[-1] >= first:
                leaves[at] = leaves[at].at[0, 0].set(jnp.nan)
            return after._replace(opt_state=jax.tree.unflatten(tree, leaves)), metrics

        return made._replace(step=step)

    patch.setattr(loop, "compile_program", poisoning)
    return taken


def test_a_stop_does_not_save_a_state_that_is_not_finite(
    text: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    poison(monkeypatch, lambda step, order: 0)
    taken = poison_state(monkeypatch, first=13)
    ask_to_stop(monkeypatch, lambda: len(taken) >= 16)
    assert train_line(*OPTIONS, "--data", text, "--out", tmp_path / "run") == 130
    assert "step 16 is not finite, and was not saved: saved step 10" in capsys.readouterr().err
    assert_finite(tmp_path / "run", 10)


@pytest.mark.slow
def test_a_validation_does_not_save_a_state_that_is_not_finite(
    text: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    poison_state(monkeypatch, first=2 * EVERY)  # the next step would show it
    assert train_line(*OPTIONS, "--data", text, "--out", tmp_path / "run") == 2
    assert "last good checkpoint is step 10" in the_error(capsys)
    assert_finite(tmp_path / "run", 10)


# ---- spikes --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_spikes_are_skipped_by_option_and_a_resumed_run_skips_the_same(
    text: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    poison(monkeypatch, lambda step, order: SPIKE if step in {LEAST + 6, LEAST + 11} else 0)
    line = [*OPTIONS, "--data", text, "--skip-spikes", 2, "--steps", 50, "--eval-every", 20]
    assert train_line(*line, "--out", tmp_path / "whole") == 0
    skipped = {line["step"]: line["skipped"] for line in lines_of(tmp_path / "whole") if "skipped" in line}
    assert skipped == {40: 1, 45: 1}
    asked = iter(range(LEAST + 4))
    with pytest.MonkeyPatch.context() as patch:
        ask_to_stop(patch, lambda: next(asked, None) is None)
        assert train_line(*line, "--out", tmp_path / "parts") == 130
    assert state_of(tmp_path / "parts")[1]["step"] == LEAST + 4
    assert train_line("--resume", "--out", tmp_path / "parts") == 0
    assert_trees_equal(state_of(tmp_path / "parts"), state_of(tmp_path / "whole"))
