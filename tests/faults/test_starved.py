"""Starvation: full disks, too little memory, files that vanish and disks that stall. Each costs a line, never a run."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.bundle.write import new_bundle
from mlm_onnx.bundle.write import write_atomically as write_for_bundle
from support.faults import fill, small_disk
from support.made import made_text
from support.paths import ROOT
from support.runs import TINY, train_line
from support.states import meta, state

from jax_mlm.config import DataConfig
from jax_mlm.data import prepare as preparation
from jax_mlm.data.prepare import awaited, prepare
from jax_mlm.data.tokenizer import train_tokenizer, vocabulary_of
from jax_mlm.errors import UserError, described, exit_status
from jax_mlm.files import make_folder, naming, new_folder, patience, write_atomically
from jax_mlm.parallel.compile import mending_cache
from jax_mlm.presets import PRESETS, SENTENCE
from jax_mlm.report import figures
from jax_mlm.run import checkpoint, room
from jax_mlm.run.checkpoint import load_params, restore, save, save_last, saving
from jax_mlm.run.log import Lines, MetricsLog, read_metrics
from jax_mlm.run.trackers import open_tracker
from jax_mlm.train import loop
from jax_mlm.train.memory import advice


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for two checkpoints of the small state (160 kB each) and a bit."""
    with small_disk(tmp_path / "disk", 500) as folder:
        yield folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Saves


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_save_without_room_costs_a_line_and_the_next_one_works(
    disk: Path, foreseen: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if not foreseen:  # another process takes the room while the save is written
        monkeypatch.setattr(checkpoint, "lacking", lambda folder, state: "")
    with saving(disk) as manager:
        save(manager, state(1), meta(1), 1.0)
        manager.wait_until_finished()
        filler = fill(disk)
        save(manager, state(2), meta(2), 0.9)
        with pytest.raises(UserError, match="step 3 could not be saved"):
            save_last(manager, state(3), meta(3), 0.8)
        assert manager.all_steps() == [1]
        filler.unlink()
        save(manager, state(4), meta(4), 0.7)
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 4]
        found = restore(manager, state(0))
    assert found is not None
    assert found[1]["step"] == 4
    assert names(disk / "checkpoints") == ["1", "4"]
    line = capfd.readouterr().err
    told = f"{disk}/checkpoints (No space left on device): a checkpoint needs 222 kB, and 0 kB is free there"
    assert line.startswith(f"warning: step 2 could not be saved in {told}; the run goes on and tries again")
    assert line.count("\n") == 1


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_last_state_without_room_is_one_line_and_the_last_good_checkpoint_stays(
    disk: Path,
    foreseen: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not foreseen:
        monkeypatch.setattr(checkpoint, "lacking", lambda folder, state: "")
    with saving(disk) as manager:
        save(manager, state(1), meta(1), 1.0)
        manager.wait_until_finished()
        fill(disk)
        with pytest.raises(UserError, match=r"step 2 could not be saved.*last good checkpoint is of step 1.*--resume"):
            save_last(manager, state(2), meta(2), 0.9)
    assert names(disk / "checkpoints") == ["1"]
    assert load_params(disk)[0] == 1
    assert capfd.readouterr().err == ""
    assert [record for record in caplog.records if record.exc_info] == [], "Orbax's tracebacks repeat the line"


def test_a_failed_save_deletes_none_of_those_before_it(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orbax forgets what a save would replace when it begins, not when it has succeeded."""
    monkeypatch.setattr(checkpoint, "lacking", lambda folder, state: "")
    small = {step: state(step, 20) for step in range(1, 8)}
    with saving(disk) as manager:
        for step in (1, 2, 3, 4):
            save(manager, small[step], meta(step), 5.0 - step)
        manager.wait_until_finished()
        filler = fill(disk)
        for step in (5, 6):
            save(manager, small[step], meta(step), 5.0 - step)
        manager_steps = [int(name) for name in names(disk / "checkpoints") if name.isdecimal()]
        assert manager_steps == [2, 3, 4]
        filler.unlink()
        save(manager, small[7], meta(7), 9.0)
    assert names(disk / "checkpoints") == ["3", "4", "7"]


def test_what_the_system_refuses_is_told_by_its_own_words() -> None:
    texts = ["RESOURCE_EXHAUSTED: Failed to write 3 bytes: No space left on device [os_error_code='28']",
             "Error while serializing: I/O error: No space left on device (os error 28)"]  # fmt: skip
    assert [room.reason_of(ValueError(text)) for text in texts] == [os.strerror(errno.ENOSPC)] * 2
    assert room.reason_of(OSError(errno.EDQUOT, "x")) == os.strerror(errno.EDQUOT)
    assert room.reason_of(ValueError("first\nsecond")) == "first"


@pytest.mark.slow
def test_a_run_on_a_full_disk_ends_with_one_line_and_keeps_its_last_good_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = made_text(tmp_path / "made.txt")
    options = [*TINY, "--data", text, "--steps", 40, "--eval-every", 10]
    with small_disk(tmp_path / "disk", 700) as disk:
        assert train_line(*options, "--out", disk / "run") == 2
        errors = capfd.readouterr().err.splitlines()
        assert not [line for line in errors if "Traceback" in line]
        assert sum(line.startswith("error:") for line in errors) == 1
        last = max(int(name) for name in names(disk / "run" / "checkpoints"))
        assert last < 40
        assert f"the last good checkpoint is of step {last}" in errors[-1]
        assert load_params(disk / "run")[0] == last
        assert [line["step"] for line in read_metrics(disk / "run") if line["kind"] == "valid"] == [10, 20, 30, 40]


# Files


def test_a_file_is_written_whole_or_not_at_all_and_the_line_names_it(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = disk / "a.json"
    write_atomically(path, "before")
    assert exit_status(lambda: write_atomically(path, bytes(600_000))) == 2
    assert path.read_text() == "before"
    assert names(disk) == ["a.json"]
    line = capsys.readouterr().err
    assert line.startswith(f"error: {path}: No space left on device (600 kB needed, ")
    assert line.endswith(" free): make room there\n")


def test_a_folder_or_a_bundle_on_a_full_disk_leaves_nothing(disk: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(bytes(600_000))

    for make, error in ((new_folder, OSError), (new_bundle, BundleError)):
        with pytest.raises(error, match="No space left on device") as caught, make(disk / "out") as partial:
            write(partial)
        assert str(disk / "out") in str(caught.value)
        assert names(disk) == []
    with pytest.raises(BundleError, match=r"page.*MB free"):
        write_for_bundle(disk / "page", bytes(600_000))
    assert names(disk) == []


def test_errors_of_libraries_in_other_languages_get_the_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device.*model") as caught, naming(tmp_path / "model", 7_000):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert "7 kB needed" in described(caught.value)
    with pytest.raises(FileNotFoundError, match="elsewhere"), naming(tmp_path / "model"):
        Path("/elsewhere/text").read_text()  # not the file that is written


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.EFBIG, errno.EDQUOT, errno.ESTALE])
def test_any_refusal_of_the_system_is_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    assert exit_status(lambda: write_atomically(tmp_path / "run.json", "{}")) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {tmp_path / 'run.json'}: {os.strerror(number)}")
    assert line.count("\n") == 1
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--out .*file/run: Not a directory"):
        make_folder(tmp_path / "file" / "run", "--out")


# The log


def test_lines_wait_for_room_and_none_is_torn(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(disk / "metrics.jsonl")
    lines.add("1" * 3000 + "\n")
    filler = fill(disk)  # the last block of the file has room for some hundred bytes
    for digit in "234":
        lines.add(digit * 3000 + "\n")
    assert [line[0] for line in (disk / "metrics.jsonl").read_text().splitlines()] in (["1"], ["1", "2"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{disk / 'metrics.jsonl'}: No space left on device" in said
    filler.unlink()
    lines.add("5\n")
    lines.close()
    assert (disk / "metrics.jsonl").read_text().splitlines() == [d * 3000 for d in "1234"] + ["5"]
    assert capsys.readouterr().err == ""


def test_lines_that_never_found_room_are_counted(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(disk / "metrics.jsonl")
    lines.add("whole\n")
    fill(disk)
    for _ in range(3):
        lines.add("x" * 5000 + "\n")
    lines.close()
    assert (disk / "metrics.jsonl").read_text() == "whole\n"
    assert "the last 3 lines could not be written" in capsys.readouterr().err


def test_a_tracker_that_cannot_write_is_left_out_and_the_log_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def write(self, step: int, figures: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None: ...

    record = MetricsLog(tmp_path, tracker=Full())
    for step in (1, 2):
        record.write("train", step, {"loss": 1.0})
    record.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert capsys.readouterr().err.count("warning: --track: No space left on device") == 1


def test_tensorboard_notices_a_full_disk_and_does_not_wait_for_it(disk: Path) -> None:
    """The thread of its own SummaryWriter ends there; the queue before it is full ten figures later, and waits."""
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    tracker = open_tracker("tensorboard", disk, replace(PRESETS["tiny"], track="tensorboard"))
    assert tracker is not None
    fill(disk)
    figures = {f"train/{number}": 1.0 for number in range(200)}
    with pytest.raises(OSError, match="No space left"):
        tracker.write(1, figures)


def test_a_drawing_without_room_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fail(run: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / "report.html"))

    monkeypatch.setattr(figures, "draw", fail)
    drawer = figures.Drawer(tmp_path, every=0.0)
    for _ in range(3):
        drawer.maybe()
        assert drawer._thread is not None
        drawer._thread.join()
    drawer.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path / 'report.html'}: No space left on device" in said


# Preparation


def test_preparation_without_room_is_one_line_and_continues_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = made_text(tmp_path / "made.txt")
    tokenizer = train_tokenizer(text.read_text().splitlines(), "word", 16)
    monkeypatch.setattr(preparation, "CHUNK", 1000)
    begin = lambda cache: prepare([text], tokenizer, vocabulary_of(tokenizer), DataConfig(), cache)  # noqa: E731
    whole = begin(tmp_path / "cache")
    with small_disk(tmp_path / "disk", 500) as disk:
        (disk / "tokens").mkdir()
        filler = fill(disk)
        os.truncate(filler, filler.stat().st_size - 2 * 4096)  # enough for the lock
        assert exit_status(lambda: begin(disk)) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert str(disk / "tokens") in line
        assert re.search(r"No space left on device \(\d kB free\): make room there", line)
        assert "--cache" not in line, "it is a token file that has no room"
        assert not [name for name in names(disk / "tokens") if name.endswith(tuple("0123456789abcdef"))]
        filler.unlink()
        again = begin(disk)
        np.testing.assert_array_equal(again.tokens, whole.tokens)
        np.testing.assert_array_equal(again.documents, whole.documents)


def test_a_text_that_vanishes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    text = made_text(tmp_path / "made.txt")
    tokenizer = train_tokenizer([SENTENCE], "word", 16)
    blocks = preparation.blocks

    def vanishing(path: Path, *options: object) -> Iterator:
        yield from blocks(path, *options)
        path.unlink()

    monkeypatch.setattr(preparation, "blocks", vanishing)
    status = exit_status(lambda: prepare([text], tokenizer, vocabulary_of(tokenizer), DataConfig(), tmp_path / "c"))
    assert status == 2
    assert capsys.readouterr().err == f"error: {text}: No such file or directory\n"


def test_what_stalls_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> str:
        said, waited = "", threading.Event()
        for _ in range(5000):
            waited.wait(0.001)
            if said := capsys.readouterr().err:
                break
        return said

    with patience("saving step 7 in there", every=0.001):
        assert told().startswith("saving step 7 in there: 0 s so far\n")

    stalled: list[str] = []

    def slow() -> Iterator[int]:
        stalled.append(told())
        yield 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "patience", lambda doing: patience(doing, every=0.001))
        assert list(awaited(Path("far/text.txt"), slow())) == [1]
    assert stalled[0].startswith("reading far/text.txt: 0 s so far")


def test_half_an_entry_of_the_compile_cache_is_removed(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    import warnings

    for name in ("jit_step-12-cache", "jit_other-34-cache"):
        (tmp_path / name).touch()
    with mending_cache(tmp_path):
        warnings.simplefilter("always")
        for doing in ("writing", "reading"):
            warnings.warn(
                f"Error {doing} persistent compilation cache entry for 'jit_step': OSError: full", stacklevel=1
            )
        warnings.warn("something else", stacklevel=1)
    assert names(tmp_path) == ["jit_other-34-cache"]
    assert capsys.readouterr().err.count(f"warning: {tmp_path}: writing a compiled program failed") == 1


# Memory


def test_advice_on_memory_fits_the_rules() -> None:
    tried = [(b, a, d) for b in (1, 6, 8, 12, 64, 96, 256) for a in (1, 2, 3, 8) for d in (1, 2, 8)]
    for batch, accumulate, devices in tried:
        if batch % (accumulate * devices):
            continue
        words = advice(batch, accumulate, devices, Path("run")).replace(",", "").split()
        now = batch // accumulate
        given = {
            option: int(words[words.index(option) + 1]) for option in ("--batch", "--accumulate") if option in words
        }
        rows = given.get("--batch", batch), given.get("--accumulate", accumulate)
        assert rows[0] % (rows[1] * devices) == 0
        if given:
            assert rows[0] // rows[1] < now or rows[0] < batch
        else:
            assert "--length" in words
            assert batch // 2 < devices
    assert advice(64, 1, 1, Path("r")).startswith(
        "try --accumulate 2, with --resume --out r (the same gradient, 32 rows"
    )
    assert advice(8, 1, 8, Path("r")) == "try a new run with a smaller --length, --width or --layers"
    assert advice(64, 1, 1, Path("r"), tuned=True) == "try a new run with --batch 32"
    assert advice(1, 1, 1, Path("r"), tuned=True) == "try a new run with a smaller --length"


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes."),
        MemoryError(),
    ],
    ids=["device", "machine"],
)
def test_memory_that_runs_out_is_one_line_with_an_option_that_helps(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_program(*_: object) -> None:
        raise error

    text = made_text(tmp_path / "made.txt")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "compile_program", compile_program)
        assert train_line(*TINY, "--data", text, "--steps", 4, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert line.startswith("error: not enough memory for 8 rows at a time (")
    assert "there is no checkpoint yet: try --accumulate 2, with --resume" in line


def test_memory_that_runs_out_in_any_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (MemoryError("Unable to allocate 9 TiB"), RuntimeError("RESOURCE_EXHAUSTED: 9 TiB")):

        def fail(error: Exception = error) -> None:
            raise error

        assert exit_status(fail) == 2
        assert "9 TiB): give a smaller --batch" in capsys.readouterr().err


# Conversion


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["hub", "space"])
def test_conversion_without_room_is_one_line(layout: str, disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from mlm_onnx.__main__ import main

    filler = fill(disk)
    os.truncate(filler, filler.stat().st_size - 2 * 4096)  # enough for the lock
    assert main(["convert", str(ROOT / "tests" / "golden" / "run"), str(disk / "out"), "--for", layout]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {disk / 'out'}")
    assert "No space left on device" in line
    assert names(disk) == ["fill"]


def test_export_without_room_is_one_line_that_says_how_much_it_takes(
    disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from jax_mlm.hf.__main__ import main

    filler = fill(disk)
    assert main(["export", str(ROOT / "tests" / "golden" / "run"), str(disk / "hf")]) == 2
    assert "HF_DIR" in capfd.readouterr().err, "there is not even room for the lock"
    os.truncate(filler, filler.stat().st_size - 20_000)
    assert main(["export", str(ROOT / "tests" / "golden" / "run"), str(disk / "hf")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {disk / 'hf'}: No space left on device (")
    assert "kB needed" in line
    assert names(disk) == ["fill"]
