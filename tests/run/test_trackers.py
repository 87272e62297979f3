"""Trackers: they get the figures of metrics.jsonl, and an absent one is a clear line."""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from jax_mlm.errors import UserError
from jax_mlm.presets import PRESETS
from jax_mlm.run.log import MetricsLog
from jax_mlm.run.trackers import MODULES, check_tracker, open_tracker


def write_with(name, run, resume_after=None):
    tracker = open_tracker(name, run, replace(PRESETS["tiny"], track=name))
    log = MetricsLog(run, resume_after, tracker)
    log.write("valid", 7, {"loss": 2.5})
    log.close()


def test_tensorboard_files_hold_the_same_scalars(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    write_with("tensorboard", tmp_path)
    written = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").iterdir())
    assert b"valid/loss" in written


@pytest.mark.parametrize("name", list(MODULES))
def test_an_absent_package_is_one_line_with_the_remedy(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"--track {name} .*pip install 'jax-mlm\[{name}\]'"):
        check_tracker(name)
    check_tracker("none")


def test_wandb_offline_holds_the_same_figures_and_the_run_goes_on_under_its_name(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_tracker("wandb")
    write_with("wandb", tmp_path)
    first = (tmp_path / "tracker-id").read_text()
    write_with("wandb", tmp_path, resume_after=0)
    assert (tmp_path / "tracker-id").read_text() == first
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert all(first.strip() in path.name for path in files)
    until = time.monotonic() + 20  # its own process writes them, and may end after ours was told so
    while not all(b"valid/loss" in path.read_bytes() for path in files):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_wandb_without_an_account_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for variable in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        check_tracker("wandb")


TRACKIO = """
import sys
from dataclasses import replace
from pathlib import Path
from jax_mlm.presets import PRESETS
from jax_mlm.run import MetricsLog
from jax_mlm.trackers import open_tracker

run = Path(sys.argv[1])
for resume_after, step in ((None, 7), (7, 14)):
    log = MetricsLog(run, resume_after, open_tracker("trackio", run, replace(PRESETS["tiny"], track="trackio")))
    log.write("valid", step, {"loss": step / 2})
    log.close()
"""


@pytest.mark.slow
def test_trackio_holds_the_same_figures_and_says_nothing_on_stdout(tmp_path):
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    (tmp_path / "run").mkdir()
    offline = {"TRACKIO_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    env = {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = [sys.executable, "-c", TRACKIO, str(tmp_path / "run")]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    stored = sqlite3.connect(tmp_path / "store" / "jax-mlm.db")
    rows = stored.execute("select run_name, step, metrics from metrics order by step").fetchall()
    stored.close()
    assert [(step, json.loads(metrics)["valid/loss"]) for _, step, metrics in rows] == [(7, 3.5), (14, 7.0)]
    assert len({name for name, _, _ in rows}) == 1, "a resumed run goes on under its name"
