"""Damaged checkpoints: each is noticed, named and set aside, and the newest sound one is used."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from support.faults import DAMAGES, cut, empty, flip
from support.paths import ROOT
from support.states import meta, saved, state

from jax_mlm.errors import UserError
from jax_mlm.run.checkpoint import load_params, open_checkpoints, restore, save
from jax_mlm.run.sums import COMMITTED, SUMS, damage, identity_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints 2 (the best), 3, 4 and 5: to be copied."""
    return saved(tmp_path_factory.mktemp("whole") / "run", [3.0, 1.0, 2.0, 2.5, 2.6])


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def arrays(checkpoint: Path) -> Path:
    """Return the largest file of a checkpoint, which holds arrays."""
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def resumed(run: Path) -> int:
    """Return the step from which a run continues, after a comparison of its state."""
    with open_checkpoints(run) as manager:
        found = restore(manager, state(0))
    assert found is not None
    for mine, theirs in zip(jax.tree.leaves(found[0]), jax.tree.leaves(state(found[1]["step"])), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    return found[1]["step"]


@pytest.mark.parametrize("hurt", DAMAGES, ids=lambda hurt: hurt.__name__)
def test_damage_to_any_file_is_noticed_and_named(run: Path, hurt: Callable[[Path], None]) -> None:
    newest = run / "checkpoints" / "5"
    names = [path.relative_to(newest).as_posix() for path in sorted(newest.rglob("*")) if path.is_file()]
    assert len(names) > 10
    assert damage(newest) == ""
    for name in names:
        content = (newest / name).read_bytes()
        hurt(newest / name)
        # What Orbax writes at the very end holds nothing that is read.
        assert (name in damage(newest)) is (name != COMMITTED), name
        (newest / name).write_bytes(content)
    assert damage(newest) == ""


@pytest.mark.parametrize("hurt", DAMAGES, ids=lambda hurt: hurt.__name__)
def test_a_damaged_checkpoint_is_set_aside_and_the_newest_sound_one_is_used(
    run: Path, hurt: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    hurt(broken := arrays(run / "checkpoints" / "5"))
    assert resumed(run) == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"warning: {run / 'checkpoints' / '5'} is damaged (")
    assert "set aside as 5.damaged" in lines[0]
    kept = run / "checkpoints" / "5.damaged"
    assert kept.is_dir()
    assert (kept / broken.relative_to(run / "checkpoints" / "5")).exists() is (hurt.__name__ != "remove")
    assert resumed(run) == 4
    assert capsys.readouterr().err == ""


def test_damage_that_stops_orbax_itself_is_survived(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Orbax reads the figures of all checkpoints when it opens a run."""
    folder = run / "checkpoints"
    (folder / "3" / "metrics" / "metrics").write_text("{")
    shutil.rmtree(folder / "4")
    (folder / "4").mkdir()
    assert resumed(run) == 5
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3.damaged", "4.damaged", "5"]
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_names_of_what_was_set_aside_do_not_collide(run: Path) -> None:
    (run / "checkpoints" / "5.damaged").mkdir()
    flip(arrays(run / "checkpoints" / "5"))
    assert resumed(run) == 4
    assert (run / "checkpoints" / "5.damaged-2" / SUMS).is_file()


def test_going_back_further_than_the_newest(run: Path) -> None:
    flip(arrays(run / "checkpoints" / "3"))
    with open_checkpoints(run) as manager:
        found = restore(manager, state(0), last=3)
        assert found is not None
        assert found[1]["step"] == 2
        assert restore(manager, state(0), last=1) is None


def test_readers_take_the_next_best_and_rename_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "checkpoints"
    flip(arrays(folder / "2"))
    flip(arrays(folder / "5"))
    before = sorted(os.walk(run))
    assert load_params(run, "best")[0] == 3
    assert f"warning: {folder / '2'} is damaged" in capsys.readouterr().err
    step, params = load_params(run, "latest")
    assert step == 4
    np.testing.assert_array_equal(params["dense"]["kernel"], state(4).params["dense"]["kernel"])
    assert f"warning: {folder / '5'} is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"step 5: .* has changed since it was written"):
        load_params(run, 5)
    assert sorted(os.walk(run)) == before


def test_where_none_is_sound_nothing_is_renamed_and_one_line_says_so(run: Path) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        flip(arrays(checkpoint))
    before = sorted(os.walk(run))
    with pytest.raises(UserError, match=r"no sound checkpoint .*step 5: .*step 2: "):
        load_params(run)
    with open_checkpoints(run) as manager, pytest.raises(UserError, match="no sound checkpoint"):
        restore(manager, state(0))
    for checkpoint in (run / "checkpoints").iterdir():
        empty(checkpoint / "meta" / "metadata")
    with pytest.raises(UserError, match=r"no sound checkpoint .*meta/metadata"):
        open_checkpoints(run)
    assert sorted(os.walk(run)) == before


def test_a_checkpoint_without_sums_is_checked_by_orbax_alone(tmp_path: Path) -> None:
    run = Path(shutil.copytree(ROOT / "tests" / "golden" / "run", tmp_path / "run"))
    shutil.copytree(run / "checkpoints" / "120", run / "checkpoints" / "130")
    assert load_params(run)[0] == 130
    cut(arrays(run / "checkpoints" / "130"))
    assert load_params(run)[0] == 120
    shutil.rmtree(run / "checkpoints" / "130" / "state")
    assert load_params(run)[0] == 120


def test_a_checkpoint_of_a_newer_version_is_refused(run: Path) -> None:
    path = run / "checkpoints" / "5" / SUMS
    sums = {**json.loads(path.read_text())["sums"], "format": 99}
    path.write_text(json.dumps({"sums": sums, "crc": zlib.crc32(json.dumps(sums, sort_keys=True).encode())}))
    for read in (lambda: load_params(run), lambda: open_checkpoints(run)):
        with pytest.raises(UserError, match="newer version of jax_mlm"):
            read()


def test_damaged_sums_are_not_believed(run: Path) -> None:
    """One changed digit may look like a later version, or like another run."""
    path = run / "checkpoints" / "5" / SUMS
    content = path.read_text()
    for before, after in (('"format": 1', '"format": 9'), ('"run": {}', '"run": {"config": 1}')):
        assert before in content
        path.write_text(content.replace(before, after))
        assert damage(path.parent) == f"{SUMS} has changed since it was written"
        assert load_params(run)[0] == 4
        assert identity_of(path.parent) == {}


def test_sums_are_there_before_the_checkpoint_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two would otherwise leave a checkpoint that nobody can tell from a damaged one."""
    seen: list[bool] = []
    rename = os.rename

    def watched(source: str, target: str) -> None:
        if Path(target).name == "1":
            seen.append((Path(source) / SUMS).is_file())
        rename(source, target)

    monkeypatch.setattr(os, "rename", watched)
    monkeypatch.setattr(os, "replace", watched)
    with open_checkpoints(tmp_path) as manager:
        save(manager, state(1), meta(1), 1.0)
    assert seen == [True]


def test_two_sound_ones_are_left_when_the_newest_is_the_best(tmp_path: Path) -> None:
    run = saved(tmp_path / "run", [4.0, 3.0, 2.0, 1.0])
    flip(arrays(run / "checkpoints" / "4"))
    flip(arrays(run / "checkpoints" / "3"))
    assert resumed(run) == 2
