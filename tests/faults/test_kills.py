"""A run that is killed again and again, in every phase, ends as the one that nobody killed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlm_onnx.bundle.read import open_bundle
from support.forked import Server, serving_forks
from support.kills import EARLY, IMPORTS, TRAIN, Kill, assert_same_run, campaign, fresh_cache, killed, stratified
from support.paths import ROOT
from support.runs import TINY, train_line

from jax_mlm.config import TrainConfig
from jax_mlm.train.setup import claimed

Fresh = Callable[..., list[Any]]
OPTIONS = [*TINY, "--steps", 40, "--eval-every", 10]


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    imports = (*IMPORTS, "mlm_onnx.convert.pipeline", "jax_mlm.hf.directory", "jax_mlm.hf.__main__")
    with serving_forks(environment, tmp_path_factory.mktemp("forks"), *imports) as server:
        yield server


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody kills."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_line(*OPTIONS, "--data", text, "--out", run) == 0
    return run


@pytest.fixture
def fresh(text: Path, tmp_path: Path) -> Fresh:
    """Options of a run for which no token is prepared yet; compiled programs are shared."""

    def options(name: str = "cache", *more: Any) -> list[Any]:
        return [*OPTIONS, "--data", text, "--cache", fresh_cache(tmp_path / name), *more]

    return options


def test_five_kills_change_nothing(server: Server, whole: Path, fresh: Fresh, tmp_path: Path) -> None:
    phases = ("start-up", "tokenizer", "preparation", "compilation", "save")
    kills = list(killed(server, fresh(), tmp_path / "run", phases, np.random.default_rng(5)))
    assert len(kills) == 5
    assert [kill.aimed for kill in kills] == [*phases]
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_kill_in_each_phase_changes_nothing(server: Server, whole: Path, fresh: Fresh, tmp_path: Path) -> None:
    phases = (*EARLY, "steps", "evaluation", "save", "drawing", "finishing")
    kills = list(killed(server, fresh(), tmp_path / "run", phases, np.random.default_rng(0)))
    aimed = [kill.aimed for kill in kills]
    assert aimed == [*phases][: len(aimed)], "only the last ones may have found the run at its end"
    assert len(aimed) >= 7
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_two_hundred_kills_change_nothing(server: Server, text: Path, fresh: Fresh, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert train_line(*OPTIONS, "--data", text, "--dropout", 0.1, "--out", whole) == 0

    def run_one(number: int) -> Iterator[Kill]:
        rng = np.random.default_rng((200, number))
        run = tmp_path / f"run-{number}"
        yield from killed(server, fresh(f"cache-{number}", "--dropout", 0.1), run, stratified(rng, 8), rng)
        assert_same_run(whole, run)

    command = f"python -m pytest -m campaign {Path(__file__).relative_to(ROOT)}"
    result = campaign(ROOT / "benchmarks" / "results" / "kills.json", 200, command, run_one)
    assert result["kills"] >= 200
    assert min(result["by_phase"].get(phase, 0) for phase in ("tokenizer", "preparation", "evaluation", "save")) >= 5


def test_a_killed_conversion_or_export_leaves_nothing_in_its_place(server: Server, whole: Path, tmp_path: Path) -> None:
    bundle, exported, imported = tmp_path / "bundle", tmp_path / "exported", tmp_path / "imported"
    commands = (
        ("mlm_onnx.__main__", ("convert", whole, bundle, "--dtype", "fp32"), bundle, ("conversion", "sealing")),
        ("jax_mlm.hf.__main__", ("export", whole, exported), exported, ("export",)),
        ("jax_mlm.hf.__main__", ("import", exported, imported), imported, ("import",)),
    )
    for module, line, target, phases in commands:
        for phase in phases:
            child = server.start(module, *line, slow={phase: 1.0})
            assert child.wait_for(f"+{phase}")
            child.signal(signal.SIGKILL)
            assert child.wait() == -signal.SIGKILL
            assert not target.exists()
        status, child = server.run(module, *line)
        assert status == 0, child.err()
        assert {path.name for path in tmp_path.iterdir() if path.name.endswith(".lock")} == set()
    assert open_bundle(bundle).manifest["origin"]["step"] > 0
    assert (exported / "model.safetensors").is_file()
    assert (imported / "run.json").is_file()
    child = server.start("mlm_onnx.__main__", *commands[0][1], slow={"sealing": 1.0})
    assert child.wait_for("+sealing")
    child.signal(signal.SIGKILL)
    child.wait()
    open_bundle(bundle)  # the one that was there


def test_a_run_that_has_nothing_yet_begins_anew(server: Server, fresh: Fresh, tmp_path: Path) -> None:
    """The same command with --resume works, whatever there is; a misspelt directory alone is refused."""
    run, options = tmp_path / "run", fresh()
    child = server.start(TRAIN, *options, "--out", run, slow={"tokenizer": 1.0})
    assert child.wait_for("+tokenizer")
    child.signal(signal.SIGKILL)
    child.wait()
    assert [path.name for path in run.iterdir()] == [".lock"]
    (run / ".run.json.0123456789abcdef").write_text("{")
    (run / "tokenizer.json").write_text("{")
    config = TrainConfig(data=("made.txt",), out=str(run), resume=True)
    with claimed(config) as (begun, found, _):
        assert (begun.resume, found) == (False, run)
        assert [path.name for path in run.iterdir()] == [".lock"]
    with claimed(replace(config, out=str(tmp_path / "new"))) as (begun, found, _):
        assert (begun.resume, found) == (False, tmp_path / "new")
    assert train_line("--resume", "--out", tmp_path / "misspelt") == 2
    assert not (tmp_path / "misspelt").exists()
    (precious := tmp_path / "precious").mkdir()
    (precious / "thesis.txt").write_text("mine")
    assert train_line(*options, "--out", precious, "--resume") == 2
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]
