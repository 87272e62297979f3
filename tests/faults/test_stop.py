"""Asked to stop by any of three signals, in any phase: one line that tells where, the usual status, nothing half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlm_onnx.__main__ import main as mlm_onnx_main
from mlm_onnx.convert import pipeline
from support.forked import Server, children_of, running, serving_forks
from support.kills import IMPORTS, TRAIN, fresh_cache, newest_state
from support.runs import TINY, train_line
from support.texts import sentences

from jax_mlm import signals
from jax_mlm.errors import UserError, exit_status
from jax_mlm.parallel.stop import stop_request
from jax_mlm.run.load import load

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PHASES = ("tokenizer", "compilation", "evaluation", "save", "drawing", "finishing")
ALONE = """
import hashlib, os, signal, sys, threading, time
from jax_mlm import signals
from jax_mlm.errors import exit_status
from jax_mlm.parallel import stop
signals.GRACE = 0.3
def busy():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**9)  # minutes, in compiled code
def held():
    with stop.stop_request() as asked:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
def unwinding():
    try:
        print("ready", flush=True)
        time.sleep(600)
    finally:
        print("unwinding", flush=True)
        time.sleep(600)
def unread():
    with stop.stop_request() as asked:
        print("ready", flush=True)
        while not asked():
            time.sleep(0.01)
        print("nobody reads this", flush=True)
        print("saving", file=sys.stderr)
    raise signals.Stopped(asked(), "saved step 5")
sys.exit(exit_status(globals()[sys.argv[1]]))
"""


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_forks(environment, tmp_path_factory.mktemp("forks"), *IMPORTS, "mlm_onnx.convert.pipeline") as server:
        yield server


@pytest.fixture
def fresh(text: Path, tmp_path: Path) -> list[Any]:
    """Options of a run for which no token is prepared yet."""
    return [*TINY, "--steps", 40, "--eval-every", 10, "--data", text, "--cache", fresh_cache(tmp_path / "cache")]


def lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("stopped")]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_unwinds_and_is_one_line_and_the_usual_status(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    unwound: list[int] = []

    def act() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            unwound.append(number)

    before = [signal.getsignal(each) for each in SIGNALS]
    assert exit_status(act) == 128 + number
    assert unwound == [number]
    by = "" if number == signal.SIGINT else f" by {number.name}"
    assert capsys.readouterr().err == f"stopped{by}\n"
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_request_is_held_back_while_work_is_finished_even_if_nobody_reads_the_output(
    environment: dict[str, str],
) -> None:
    """`train … | tee log` and Ctrl-C: tee is gone first, and the run still has to be saved."""
    line = [sys.executable, "-c", ALONE, "unread"]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        assert process.stderr.read() == "saving\nstopped by SIGTERM: saved step 5\n"


def test_signals_in_a_burst_are_one_request_and_the_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """`timeout` sends two, and so do a terminal that closes and its shell."""
    ended: list[int] = []
    monkeypatch.setattr(signals, "_end", ended.append)

    def act() -> None:
        with stop_request() as asked:
            for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), number)
            assert asked() == signal.SIGTERM

    assert exit_status(act) == 0
    assert not ended


def test_what_was_ignored_stays_ignored_and_other_threads_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for command in (exit_status, lambda act: mlm_onnx_command(monkeypatch, act)):
            assert command(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    handlers: list[object] = []
    thread = threading.Thread(target=lambda: exit_status(lambda: handlers.append(signal.getsignal(signal.SIGTERM))))
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def mlm_onnx_command(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> int:
    """Run `mlm_onnx info` with something else in its place."""
    from mlm_onnx import __main__ as command

    given = {**command.COMMANDS, "info": command.Command("", ("", ""), lambda parser: None, lambda options: act())}
    monkeypatch.setattr(command, "COMMANDS", given)
    return mlm_onnx_main(["info"])


def test_an_import_is_not_interrupted_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One in C would turn the exception into another, or crash."""
    body = "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.2)\nwhole = True\n"
    for name, run in {"slow_a": exit_status, "slow_b": lambda act: mlm_onnx_command(monkeypatch, act)}.items():
        (tmp_path / f"{name}.py").write_text(body)
        monkeypatch.syspath_prepend(tmp_path)

        def act(name: str = name) -> None:
            __import__(name)
            time.sleep(60)

        assert run(act) == 128 + signal.SIGTERM
        assert sys.modules[name].whole
        assert capsys.readouterr().err == "stopped by SIGTERM\n"


def test_a_request_that_the_collector_swallows_is_made_again(capfd: pytest.CaptureFixture[str]) -> None:
    class Careless:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):
                pass

    def act() -> None:
        Careless()
        time.sleep(60)

    assert exit_status(act) == 128 + signal.SIGTERM
    assert capfd.readouterr().err == "stopped by SIGTERM\n"


@pytest.mark.parametrize(
    ("what", "sent", "status"),
    [
        ("busy", [signal.SIGTERM], 143),
        ("held", [signal.SIGINT, signal.SIGHUP], 129),
        ("unwinding", [signal.SIGTERM, signal.SIGINT], 130),
    ],
)
def test_a_second_request_ends_at_once_and_so_does_one_that_compiled_code_keeps_waiting(
    environment: dict[str, str], what: str, sent: list[signal.Signals], status: int
) -> None:
    line = [sys.executable, "-c", ALONE, what]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05)
        for number in sent:
            process.send_signal(number)
            time.sleep(0.4)
        assert process.wait(timeout=30) == status
        assert process.stderr is not None
        said = process.stderr.read()
        assert said == ("stopped by SIGTERM\n" if what == "busy" else "")


def test_preparation_ends_with_its_workers_and_is_continued(server: Server, fresh: list[Any], tmp_path: Path) -> None:
    (folder := tmp_path / "many").mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text(sentences(40, number))
    line = [*fresh, "--data", folder, "--workers", 2, "--out", tmp_path / "run"]
    values = {"jax_mlm.data.prepare:SMALL": 0, "jax_mlm.data.prepare:CHUNK": 1000}
    child = server.start(TRAIN, *line, slow={"append": 0.3}, values=values)
    assert child.wait_for("-append", 2), child.err()
    workers = children_of(child.pid)
    assert len(workers) == 2
    child.signal(signal.SIGHUP)
    assert child.wait() == 129, child.err()
    assert not any(map(running, workers))
    assert lines(child.err()) == ["stopped by SIGHUP: no step was done yet; run the same command again"]
    assert "Traceback" not in child.err()
    assert not (tmp_path / "run").exists()
    assert not list((tmp_path / "cache" / "tokens").glob("*.lock"))


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param(phase, number, marks=pytest.mark.slow if at % 3 == turn else pytest.mark.campaign)
        for at, phase in enumerate(PHASES)
        for turn, number in enumerate(SIGNALS)
    ],
)
def test_a_run_that_is_asked_to_stop_continues_as_if_it_had_not_been(
    server: Server, fresh: list[Any], whole: Path, tmp_path: Path, phase: str, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    child = server.start(TRAIN, *fresh, "--out", run, slow={phase: 0.4})
    assert child.wait_for(f"+{phase}")
    child.signal(number)
    assert child.wait() == 128 + number, child.err()
    assert "Traceback" not in child.err()
    said = lines(child.err())
    assert len(said) == 1
    assert said[0].endswith(f"--resume --out {run}" if (run / "run.json").exists() else "run the same command again")
    if phase in ("evaluation", "save", "drawing", "finishing"):
        assert newest_state(run)["step"] >= 10
    assert train_line(*fresh, "--out", run, "--resume") == 0
    assert_same_state(whole, run)


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stops."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_line(*TINY, "--steps", 40, "--eval-every", 10, "--data", text, "--out", run) == 0
    return run


def assert_same_state(one: Path, other: Path) -> None:
    mine, theirs = newest_state(one), newest_state(other)
    assert mine.keys() == theirs.keys()
    assert all((mine[name] == theirs[name]).all() for name in mine)
    assert load(one).step == load(other).step


def test_a_conversion_leaves_what_was_there(
    sentence_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"

    def write(folder: Path, *_: object) -> None:
        (folder / "half").touch()
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(60)

    monkeypatch.setattr(pipeline, "_write_graphs", write)
    assert mlm_onnx_main(["convert", str(sentence_run.path), str(bundle)]) == 129
    assert capsys.readouterr().err == f"stopped by SIGHUP: {bundle} was not written\n"
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_never_away_from_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request to stop between the two renames that replace a bundle brings the old one back."""
    from mlm_onnx.bundle.write import new_bundle, seal

    with new_bundle(tmp_path / "bundle") as folder:
        seal(folder, {"which": "old"})
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if self.name.startswith(".bundle.") and not self.name.startswith(".bundle.old"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt), new_bundle(tmp_path / "bundle") as folder:
        seal(folder, {"which": "new"})
    assert '"old"' in (tmp_path / "bundle" / "manifest.json").read_text()


def test_mlm_onnx_answers_where_there_is_no_hangup_signal(
    trained_bundle: Callable[..., Path], environment: dict[str, str]
) -> None:
    """As on Windows, which has neither SIGHUP nor fcntl nor fork."""
    script = (
        "import os, signal, sys\ndel signal.SIGHUP, os.fork\nsys.modules['fcntl'] = None\n"
        "from mlm_onnx.__main__ import main\nsys.exit(main(['fill', sys.argv[1], 'This [MASK] creates']))"
    )
    line = [sys.executable, "-c", script, str(trained_bundle())]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_an_interrupted_notebook_says_where_too(fresh: list[Any], tmp_path: Path) -> None:
    """`train(config)` without handlers: Python's own KeyboardInterrupt carries the line."""
    from jax_mlm.train import setup

    config = setup.TrainConfig(data=(str(tmp_path / "none.txt"),), out=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt, match="no step was done yet"), setup.claimed(config):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="mine"), setup.claimed(config):
        raise UserError("mine")
