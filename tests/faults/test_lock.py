"""One writer at a time: a run, a bundle or a cache entry has one owner, who is named, and is replaced when dead."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlm_onnx.__main__ import main as mlm_onnx_main
from mlm_onnx.bundle.layout import TOKENIZER
from support.runs import train_line
from support.texts import sentences

from jax_mlm.config import DataConfig
from jax_mlm.data.prepare import prepare
from jax_mlm.data.tokenizer import train_tokenizer, vocabulary_of
from jax_mlm.errors import UserError
from jax_mlm.evaluate import main as evaluate
from jax_mlm.hf.__main__ import main as hf
from jax_mlm.run import lock
from jax_mlm.run.lock import NAME, beside, locked

HOLD = "import sys, time; from pathlib import Path; from jax_mlm.run.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1]), '--out', Path(sys.argv[1]).parent): print('held', flush=True); time.sleep(600)"


@contextmanager
def held(path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Hold a lock in a separate process."""
    line = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def refused(path: Path) -> str:
    with pytest.raises(UserError) as refusal, locked(path, "--out", path.parent):
        pass
    return str(refusal.value)


def complaint(check: lock.Check) -> str | None:
    try:
        return check()
    except UserError as error:
        return str(error)


def edited(path: Path, **fields: object) -> None:
    """Change what a lock says of its owner; the owner notices, too."""
    beat = path.stat().st_mtime
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    os.utime(path, (beat, beat))


def test_a_second_writer_is_refused_by_name_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run" / NAME
    with locked(path, "--out", path.parent) as check:
        check()
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.append(refused(path)))
        thread.start()
        thread.join()
    named = rf"{re.escape(str(path.parent))} is being written by process {os.getpid()} on {socket.gethostname()} "
    assert re.match(named + r"\(since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", said[0])
    assert not list(tmp_path.iterdir()), "nor the folders made for it"
    with locked(path, "--out", path.parent):
        (path.parent / "kept").touch()
    assert [entry.name for entry in path.parent.iterdir()] == ["kept"]


def test_a_dead_owner_is_replaced_and_a_suspended_one_is_not(tmp_path: Path, environment: dict[str, str]) -> None:
    path = tmp_path / NAME
    with held(path, environment) as owner:
        owner.send_signal(signal.SIGSTOP)
        os.utime(path, (1, 1))
        assert f"process {owner.pid} " in refused(path)
        owner.send_signal(signal.SIGCONT)
        edited(path, started="long before")  # its number was that of another process
        with locked(path, "--out", tmp_path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
    with held(path, environment) as owner:
        owner.kill()
        while lock._started(owner.pid):  # a zombie: nobody has waited for it yet
            time.sleep(0.01)
        with locked(path, "--out", tmp_path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
    path.write_text("")  # half written, and old
    os.utime(path, (1, 1))
    with locked(path, "--out", tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_an_owner_on_another_host_lives_as_long_as_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "POLL", 0.02)
    path = tmp_path / NAME
    owner = lock.Owner("elsewhere", os.getpid(), "yesterday", "1", "another machine", "abc")
    path.write_text(json.dumps(lock.asdict(owner)))
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        assert f"process {os.getpid()} on elsewhere (since yesterday)" in refused(path)
    finally:
        over.set()
        thread.join()
    assert "waiting for process" in capsys.readouterr().err
    os.utime(path, (time.time() - lock.STALE - 1,) * 2)
    with locked(path, "--out", tmp_path):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_an_owner_beats_and_one_that_was_replaced_learns_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "INTERVAL", 0.02)
    path = tmp_path / NAME
    with locked(path, "--out", tmp_path) as check:
        os.utime(path, (1, 1))
        until = time.monotonic() + 30
        while path.stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 2
        check()
    with locked(path, "--out", tmp_path) as check:
        edited(path, token="another")
        while (said := complaint(check)) is None and time.monotonic() < until + 30:
            time.sleep(0.01)
    assert said is not None
    assert "taken over" in said
    assert path.exists(), "what is another's stays"


def test_of_many_one_replaces_a_dead_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL", 0.001)
    path, together, most = tmp_path / NAME, [], []

    def work() -> None:
        for _ in range(5):
            with locked(path, "--cache", tmp_path, patient="works"):
                together.append(1)
                most.append(len(together))
                together.pop()
                if len(most) % 4 == 0:  # it dies
                    path.write_text(json.dumps({**json.loads(path.read_text()), "started": "before", "token": "dead"}))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 30
    assert {entry.name for entry in tmp_path.iterdir()} <= {NAME}


def test_the_second_user_of_a_cache_entry_waits_and_says_for_whom(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "POLL", 0.02)
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())  # capsys may lose what another thread writes as it reads
    (text := tmp_path / "made.txt").write_text(sentences(20))
    tokenizer = train_tokenizer([text.read_text()], "word", 28)

    def prepared() -> Path:
        files = prepare([text], tokenizer, vocabulary_of(tokenizer), DataConfig(), tmp_path / "cache")
        return tmp_path / "cache" / "tokens" / files.fingerprint[:32]

    entry = prepared()
    entry.rename(tmp_path / "entry")
    with held(entry.with_suffix(".lock"), environment) as owner:
        found: list[Path] = []
        thread = threading.Thread(target=lambda: found.append(prepared()))
        thread.start()
        until = time.monotonic() + 60
        while f"waiting for process {owner.pid} on" not in said.getvalue() and time.monotonic() < until:
            time.sleep(0.005)
        assert "which prepares the same text" in said.getvalue()
        (tmp_path / "entry").rename(entry)
        inode = entry.stat().st_ino
        owner.kill()
        thread.join()
    assert found == [entry]
    assert entry.stat().st_ino == inode, "what the first one made is used"
    assert not list(entry.parent.glob("*.lock"))


def test_every_command_that_writes_is_refused_and_every_one_that_reads_is_not(
    sentence_run, trained_bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bundle = sentence_run.path, trained_bundle()
    out = tmp_path / "run"
    (text := tmp_path / "made.txt").write_text(sentences(60))
    target = tmp_path / "target"
    before = sorted(run.iterdir())
    with locked(out / NAME, "--out", out), locked(beside(target), "BUNDLE", target):
        capsys.readouterr()
        assert train_line("--data", text, "--out", out) == 2
        assert train_line("--data", text, "--out", target) == 2
        assert train_line("--data", text, "--out", out, "--resume") == 2
        assert hf(["import", str(tmp_path), str(target)]) == 2
        assert hf(["export", str(run), str(target)]) == 2
        assert mlm_onnx_main(["convert", str(run), str(target)]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 6, errors
        assert all(f"is being written by process {os.getpid()} on" in line for line in errors)
    assert not out.exists()
    with locked(run / NAME, "--out", run), locked(beside(bundle), "BUNDLE", bundle):
        assert evaluate([str(run), "--data", str(text)]) == 0
        assert hf(["export", str(run), str(target)]) == 0
        assert mlm_onnx_main(["info", str(bundle)]) == 0
        assert mlm_onnx_main(["fill", str(bundle), "This [MASK] creates"]) == 0
    assert sorted(run.iterdir()) == before
    assert (target / TOKENIZER).is_file()
