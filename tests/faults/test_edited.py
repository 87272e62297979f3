"""Files of a run that were edited, cut short or damaged since: --resume names them, and goes on where it can."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.faults import cut, flip, remove
from support.made import made_text
from support.runs import TINY, train_line

from jax_mlm.errors import UserError
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.log import METRICS_FILE, MetricsLog, read_metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of 20 steps, checkpoints 10 and 20, and the texts it was made of: to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    text, valid = made_text(folder / "made.txt"), folder / "valid.txt"
    valid.write_text("".join(f"{line}\n" for line in text.read_text().splitlines()[:40]))
    options = [*TINY, "--data", text, "--valid", valid, "--steps", 20, "--eval-every", 10]
    assert train_line(*options, "--out", folder / "run") == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


def refused(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a run is not resumed; nothing in it has changed."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train_line("--resume", "--out", run, "--steps", 30) == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    return said.splitlines()[-1]


def edit(path: Path, change: Callable[[Any], object]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def test_an_edited_configuration_is_refused_with_the_difference(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run / "run.json", lambda body: body["config"]["optim"].update(lr=0.5))
    assert f"{run / 'run.json'} has changed since the run began: --lr 0.003 → 0.5;" in refused(run, capsys)
    edit(run / "run.json", lambda body: body["config"].update(seed=7))
    assert "(and 1 more)" in refused(run, capsys)


def test_an_edited_tokenizer_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (run / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert f"{run / 'tokenizer.json'} has changed since the run began (its hash " in refused(run, capsys)


@pytest.mark.parametrize("name", ["made.txt", "valid.txt"])
def test_an_edited_text_is_refused_with_its_name(
    name: str, trained: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (trained / name).read_bytes()
    try:
        (trained / name).write_bytes(content + b"one more line\n")
        assert f"--data has changed since the run began: {trained / name} (" in refused(run, capsys)
        (trained / name).unlink()
        assert str(trained / name) in refused(run, capsys)
    finally:
        (trained / name).write_bytes(content)


@pytest.mark.slow
def test_a_run_from_before_fingerprints_is_resumed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run / "run.json", lambda body: [body["data"].pop(name) for name in ("train", "valid", "sources")])
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "sums.json").unlink()
        edit(checkpoint / "meta" / "metadata", lambda body: body.pop("sums"))
    assert train_line("--resume", "--out", run) == 0
    assert "warning: the text" not in capsys.readouterr().err
    edit(run / "run.json", lambda body: body["data"].pop("sources"))
    edit(run / "run.json", lambda body: body["data"].update(train="0" * 64))
    assert train_line("--resume", "--out", run) == 0
    assert "warning: the text or tokenizer may have changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"5", b'{"config": 3}', b'{"data": []}', b"\xff\xfe", b"\0" * 99]
)
def test_a_damaged_run_json_is_one_line(content: bytes, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "run.json").write_bytes(content)
    assert str(run / "run.json") in refused(run, capsys)


def test_a_run_of_a_newer_version_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run / "run.json", lambda body: body.update(format=2))
    assert "was written by a newer version of jax_mlm" in refused(run, capsys)


@pytest.mark.parametrize("hurt", [cut, flip, remove], ids=lambda hurt: hurt.__name__)
def test_a_damaged_tokenizer_is_one_line(
    hurt: Callable[[Path], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hurt(run / "tokenizer.json")
    assert str(run / "tokenizer.json") in refused(run, capsys)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    trained: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(max((run / "checkpoints" / "20").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size))
    assert train_line("--resume", "--out", run) == 0
    warnings = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ") and "check" in line
    ]
    assert ["20 is damaged" in line for line in warnings if "checkpoints" in line] == [True]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["10", "20", "20.damaged"]
    (step, mine), (_, theirs) = load_params(run, "latest"), load_params(trained / "run", "latest")
    assert step == 20
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)

    def losses(run: Path) -> list[tuple[str, int, float]]:
        return [(line["kind"], line["step"], line["loss"]) for line in read_metrics(run)]

    assert losses(run) == losses(trained / "run")


def line_of(step: int) -> str:
    return json.dumps({"kind": "train", "step": step, "loss": 1.0}) + "\n"


@pytest.mark.parametrize("broken", ["x\n", "5\n", '{"kind": 3, "step": []}\n', "\0\0\n", "\ufffd{\n", "[]\n"])
def test_a_damaged_line_of_the_log_is_left_out_and_kept_beside(
    broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = line_of(1) + broken + line_of(2) + '{"kind": "tr'
    (tmp_path / METRICS_FILE).write_text(content)
    with pytest.raises(UserError, match=rf"{METRICS_FILE}, line 2: not a line of a log"):
        read_metrics(tmp_path)
    MetricsLog(tmp_path, resume_after=9).close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert (tmp_path / f"{METRICS_FILE}.damaged").read_text() == content
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"warning: {tmp_path / METRICS_FILE}, line 2: not a line of a log; left out")


def test_a_torn_last_line_is_left_out_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for torn in ('{"kind": "train", "st', line_of(3).rstrip("\n"), "\0\0\0"):
        (tmp_path / METRICS_FILE).write_text(line_of(1) + torn)
        assert [line["step"] for line in read_metrics(tmp_path)] == [1]
        MetricsLog(tmp_path, resume_after=9).close()
        assert (tmp_path / METRICS_FILE).read_text() == line_of(1)
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir() if "damaged" in path.name] == []
