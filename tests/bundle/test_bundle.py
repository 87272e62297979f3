"""A bundle that is not exactly what was written is refused, with one line that says why."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlm_onnx import FillMask
from mlm_onnx.__main__ import main
from mlm_onnx.bundle import read as bundle
from mlm_onnx.bundle.background import BackgroundTask
from mlm_onnx.bundle.layout import FAST_DATA, FAST_GRAPH, FILL, TASKS, BundleError
from mlm_onnx.bundle.read import open_bundle, verify
from mlm_onnx.bundle.write import check_target, new_bundle, seal, write_json


@pytest.fixture
def made(sentence_bundles: dict[str, Path]) -> Path:
    return sentence_bundles["fp32"]


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_sound_bundle_opens_and_documents_itself(made: Path) -> None:
    opened = open_bundle(made)
    assert opened.special.mask == "[MASK]"
    assert (opened.vocab_size, opened.limits.max_length) == (16, 64)
    manifest = opened.manifest
    assert (manifest["kind"], manifest["format"], manifest["task"], manifest["dtype"]) == (
        "mlm-onnx",
        1,
        "fill-mask",
        "fp32",
    )
    assert 0 < manifest["parity"]["fp32"]["max_difference"] <= 1e-4
    assert manifest["parity"]["fp32"]["logit_std"] >= 1
    graph = manifest["graphs"]["fast/fill_mask.onnx"]
    (logits,) = graph["outputs"]
    assert (logits["name"], logits["dtype"], logits["shape"]) == ("logits", "float32", ["batch", "masks", 16])
    assert "requested position" in logits["meaning"]
    assert manifest["origin"]["step"] == 7
    assert set(manifest["files"]) == {file.relative_to(made).as_posix() for file in made.rglob("*.*")} - {
        "manifest.json"
    }


@pytest.mark.parametrize("name", TASKS[FILL].required)
def test_every_changed_byte_is_noticed(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (copy / name).write_bytes(damaged)
        with pytest.raises(BundleError, match="SHA-256"):
            open_bundle(copy)
    (copy / name).write_bytes(whole[:-1])
    with pytest.raises(BundleError, match="cut short"):
        open_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match="missing"):
        open_bundle(copy)


def test_a_query_reads_only_what_it_answers_from(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sizes of all files are checked, the hashes of those that are opened; `info` checks everything."""
    (copy / "onnx").mkdir()
    (copy / "onnx" / "model.onnx").write_bytes(b"as it was")
    facts = json.loads((copy / "manifest.json").read_text())
    seal(copy, {name: value for name, value in facts.items() if name not in ("kind", "format", "task", "files")})
    (copy / "onnx" / "model.onnx").write_bytes(b"as it is!")
    assert FillMask(copy, threads=1)("This [MASK] a")["masks"]
    assert main(["info", str(copy)]) == 2
    assert "onnx/model.onnx does not match its SHA-256" in capsys.readouterr().err
    (copy / "onnx" / "model.onnx").write_bytes(b"longer than it was")
    with pytest.raises(BundleError, match="has 18 bytes, not 9"):
        FillMask(copy)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/hostname",
        "../outside",
        "fast/../../outside",
        "",
        ".",
        "a\\b",
        "c:evil",
        "./config.json",
        "fast//x",
        "a\0b",
    ],
)
def test_no_path_leaves_the_bundle(copy: Path, name: str) -> None:
    (copy.parent / "outside").write_text("x")
    edit(copy, lambda m: m["files"].update({name: {"size": 1, "sha256": "0"}}))
    with pytest.raises(BundleError, match=r"outside the bundle|missing"):
        open_bundle(copy)


def test_links_are_refused(copy: Path) -> None:
    (copy / "config.json").rename(copy.parent / "elsewhere.json")
    (copy / "config.json").symlink_to(copy.parent / "elsewhere.json")
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(copy)
    (copy / "config.json").unlink()
    (copy.parent / "elsewhere.json").rename(copy / "config.json")
    (copy / "fast").rename(copy.parent / "fast")
    (copy / "fast").symlink_to(copy.parent / "fast")
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(format=2), "pip install -U mlm-onnx"),
        (lambda m: m.update(format="1"), "unknown bundle format"),
        (lambda m: m.update(format=True), "unknown bundle format"),
        (lambda m: m.update(task="translate"), "translate"),
        (lambda m: m.update(kind="other"), "not a manifest of mlm-onnx"),
        (lambda m: m.pop("files"), "lists no files"),
        (lambda m: m.update(files={"config.json": 3}), "lists no files"),
        (lambda m: m["files"].pop("fast/fill_mask.onnx.data"), r"does not list fast/fill_mask\.onnx\.data"),
        (lambda m: m["limits"].update(max_length=1 << 40), "out of bounds"),
        (lambda m: m["limits"].update(max_top_k=-1), "out of bounds"),
        (lambda m: m["limits"].update(max_texts=1.5), "out of bounds"),
        (lambda m: m.pop("limits"), "incomplete"),
        (lambda m: m["tokens"]["mask"].update(id=16), "out of bounds"),
        (lambda m: m["tokens"].update(special=[99]), "out of bounds"),
        (lambda m: m["tokens"].update(special=3), "incomplete"),
        (lambda m: m.update(vocab_size="16"), "out of bounds"),
    ],
)
def test_manifests_that_lie(copy: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match=said) as caught:
        open_bundle(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff\xfe", "[" * 100_000])
def test_what_is_not_a_manifest(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError) as caught:
        open_bundle(copy)
    assert "manifest.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"not a bundle: it has no manifest\.json"):
        open_bundle(tmp_path)


def test_writing_is_all_or_nothing(tmp_path: Path, made: Path) -> None:
    target = tmp_path / "deep" / "target"

    def fail() -> None:
        with new_bundle(target) as folder:
            (folder / "half").write_text("x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(target.parent.iterdir()) == []
    shutil.copytree(made, target)
    with pytest.raises(RuntimeError, match="stop"):
        fail()
    open_bundle(target)
    with new_bundle(target) as folder:
        (folder / "config.json").write_text("{}")
        seal(folder, {"new": True})
    assert bundle.read_manifest(target)["new"] is True
    assert list(target.parent.iterdir()) == [target]
    assert not (target / "fast").exists()


def test_only_a_bundle_of_ours_is_replaced(copy: Path, tmp_path: Path) -> None:
    check_target(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_target(tmp_path / "empty")
    check_target(copy)
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        check_target(copy)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="nothing was written"):
        check_target(other)
    with pytest.raises(BundleError, match="not a folder"):
        check_target(other / "thesis.txt")
    assert (other / "thesis.txt").read_text() == "mine"


def test_any_text_that_python_has_is_written(tmp_path: Path) -> None:
    value = {"columns": {"text": "half of \ud83d", "é": "\udc80"}}
    write_json(tmp_path / "m.json", value)
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == value


def test_weights_hashed_ahead_are_checked_as_well(copy: Path) -> None:
    bundle = open_bundle(copy, full=False, ahead=True)
    verify(bundle, FAST_GRAPH)
    content = bytearray((copy / FAST_DATA).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / FAST_DATA).write_bytes(content)
    for again in (bundle, open_bundle(copy, full=False, ahead=True)):  # what was hashed ahead counts once
        with pytest.raises(BundleError, match=r"fill_mask\.onnx\.data does not match its SHA-256"):
            verify(again, FAST_GRAPH)


def test_what_a_thread_raises_is_raised_where_it_is_asked_for() -> None:
    def fail() -> None:
        raise BundleError("no")

    assert BackgroundTask(lambda: 3).result() == 3
    with pytest.raises(BundleError, match="no"):
        BackgroundTask(fail).result()


@pytest.mark.parametrize("broken", ["tokenizer.json", FAST_GRAPH, FAST_DATA])
def test_nothing_reads_a_bundle_that_was_refused(copy: Path, broken: str) -> None:
    """Whoever mends it meanwhile, or cuts it short, meets no thread that is left over."""
    content = (copy / broken).read_bytes()
    for _ in range(20):
        (copy / broken).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError):
            FillMask(copy, threads=1)
        assert not [thread for thread in threading.enumerate() if thread.name == "mlm_onnx"]


def test_a_file_cut_short_while_it_is_hashed_is_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bus error, which would end the process: the size is right, and the file is cut before it is read."""
    check = bundle._check_size

    def cut(file: Path, facts: Any) -> None:
        check(file, facts)
        if file.name == Path(FAST_DATA).name:
            os.truncate(file, 5000)

    opened = open_bundle(copy, full=False)
    monkeypatch.setattr(bundle, "_check_size", cut)
    with pytest.raises(BundleError, match="does not match its SHA-256"):
        verify(opened, FAST_DATA)
