"""Files and folders appear whole or not at all, and one module sees to that."""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.paths import ROOT

from jax_mlm.files import discard, new_folder, publish, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def renames(call: ast.Call) -> bool:
    """Whether a call renames a file, or makes one to be renamed; str.replace takes two arguments, Path.replace one."""
    match call.func:
        case ast.Attribute(value=ast.Name("os"), attr="replace"):
            return True
        case ast.Attribute(attr="replace"):
            return len(call.args) == 1 and not call.keywords
        case ast.Attribute(attr=name) | ast.Name(name):
            return name in ("rename", "renames", "move", "mkstemp", "mkdtemp")
    return False


def test_nothing_else_renames() -> None:
    package = ROOT / "jax_mlm"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and renames(node)
    }
    assert found == {"files.py"}


def refuse(number: int) -> None:
    raise OSError(28, "full")


@pytest.mark.parametrize("content", ["läuft\n", b"\xff\r\n", "half: \ud800"])
def test_a_write_replaces_the_file_or_leaves_it(
    content: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, content)
    assert path.read_text() == "before"
    write_atomically(path, content)
    assert path.read_bytes() == (content.encode("utf-8", "replace") if isinstance(content, str) else content)
    assert names(tmp_path) == ["a.json"]


def test_threads_that_write_one_file_leave_one_of_their_texts(tmp_path: Path) -> None:
    path, texts = tmp_path / "a", [str(i) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=write_atomically, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert names(tmp_path) == ["a"]


def test_a_new_folder_takes_its_place_when_it_is_full(tmp_path: Path) -> None:
    target = tmp_path / "b" / "run"
    with new_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
    assert names(tmp_path / "b") == ["run"]
    assert names(target) == ["a"]


def test_a_folder_that_fails_leaves_nothing_and_one_in_use_stays(tmp_path: Path) -> None:
    target = tmp_path / "run"

    def fill(then: Callable[[], object]) -> None:
        with new_folder(target) as partial:
            (partial / "a").write_text("1")
            then()

    def stop() -> None:
        raise KeyboardInterrupt

    def use() -> None:
        target.mkdir()
        (target / "theirs").write_text("2")

    with pytest.raises(KeyboardInterrupt):
        fill(stop)
    assert names(tmp_path) == []
    with pytest.raises(OSError, match="not empty"):
        fill(use)
    assert names(tmp_path) == ["run"]
    assert names(target) == ["theirs"]


def test_discarded_and_published(tmp_path: Path) -> None:
    old, new = tmp_path / "files", tmp_path / "partial"
    for folder in (old, new):
        folder.mkdir()
        (folder / folder.name).write_text("1")
    discard(old)
    discard(old)
    assert names(tmp_path) == ["partial"]
    publish(new, old)
    assert names(old) == ["partial"]
