"""The bundle on disk: file names, manifest, and what is checked before anything in it is opened. Stdlib only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mlm_onnx.onnx_check import OnnxError, check_onnx

FORMAT = 1
KIND = "mlm-onnx"
TASK = "fill-mask"
MANIFEST = "manifest.json"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
FAST_GRAPH = "fast/fill_mask.onnx"
FAST_DATA = "fast/fill_mask.onnx.data"
HUB_GRAPH, HUB_QUANTIZED = "onnx/model.onnx", "onnx/model_quantized.onnx"
"""Only in bundles made `--for hub`: names that optimum and transformers.js look for."""
REQUIRED = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, FAST_GRAPH, FAST_DATA)

MANIFEST_BYTES = 4 << 20
LARGEST = {"max_length": 1 << 16, "max_characters": 1 << 24, "max_texts": 1 << 20, "max_top_k": 1 << 24}
"""A manifest may lower these, not exceed them."""


class BundleError(ValueError):
    """The folder is no bundle, a damaged one, or one from a newer version: one line that says which."""


class QueryError(ValueError):
    """A query that has no answer: one line that says why and what to do."""


@dataclass(frozen=True)
class Limits:
    """What a query may ask for."""

    max_length: int
    """Tokens of a text, special tokens included."""
    max_top_k: int
    max_characters: int = 1_000_000
    max_texts: int = 100_000


@dataclass(frozen=True)
class Special:
    """The tokens that a query or its answer treats differently."""

    mask: str
    mask_id: int
    pad_id: int
    never: tuple[int, ...]
    """Ids that are never an answer: special tokens, and rows of the table that no token uses."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    path: Path
    manifest: Mapping[str, Any]
    limits: Limits
    special: Special
    vocab_size: int
    """Logits at a position."""

    def file(self, name: str) -> Path:
        return self.path / name


# ---- reading -------------------------------------------------------------------------------------


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Checks the manifest, size and SHA-256 of every file in it, and each graph's operators and places of its weights.

    Nothing is opened by onnxruntime before.

    Raises:
        BundleError: with one line that names the file and what is wrong with it.
    """
    path = Path(path)
    manifest = read_manifest(path)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(facts, dict) for facts in files.values()):
        raise BundleError(f"{path / MANIFEST} lists no files")
    for name in REQUIRED:
        if name not in files:
            raise BundleError(f"{path / MANIFEST} does not list {name}")
    try:
        located = {name: _locate(path, name) for name in files}
        _check_files(located, files)
        _check_graphs(located)
    except OSError as error:
        raise BundleError(f"{error.filename or path}: {error.strerror or error}") from None
    try:
        limits = Limits(**{name: _whole(manifest["limits"][name], 1, most) for name, most in LARGEST.items()})
        vocab_size = _whole(manifest["vocab_size"], 1, 1 << 24)
        tokens = manifest["tokens"]
        mask, ids = str(tokens["mask"]["text"]), (tokens["mask"]["id"], tokens["pad"]["id"])
        mask_id, pad_id = (_whole(id, 0, vocab_size - 1) for id in ids)
        never = tuple(_whole(id, 0, vocab_size - 1) for id in (*tokens["special"], *tokens["unused"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST} is incomplete or out of bounds: {error}") from None
    if not mask:
        raise BundleError(f"{path / MANIFEST} names no mask token")
    return Bundle(path, manifest, limits, Special(mask, mask_id, pad_id, never), vocab_size)


def _check_files(located: Mapping[str, Path], files: Mapping[str, Any]) -> None:
    for name, file in located.items():  # all sizes first: they cost nothing
        size = file.stat().st_size
        if size != files[name].get("size"):
            raise BundleError(f"{file} has {size} bytes, not {files[name].get('size')}: it is damaged or cut short")
    for name, file in located.items():
        if _sha256(file) != files[name].get("sha256"):
            raise BundleError(f"{file} does not match its SHA-256 in {MANIFEST}: it is damaged or was changed")


def _check_graphs(located: Mapping[str, Path]) -> None:
    for name, file in located.items():
        if name.endswith(".onnx"):
            beside = {other.name: other.stat().st_size for other in located.values() if other.parent == file.parent}
            try:
                check_onnx(file, beside)
            except OnnxError as error:
                raise BundleError(f"{file} may not be opened: {error}") from None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle of this format; its files are not checked."""
    file = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path} is no folder: give the folder that `mlm_onnx convert` wrote")
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST}")
    if file.stat().st_size > MANIFEST_BYTES:
        raise BundleError(f"{file} is larger than any manifest")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not valid JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise BundleError(f"{file} is not a manifest of mlm-onnx")
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise BundleError(
            f"{path} has bundle format {version}, this mlm-onnx reads up to {FORMAT}: pip install -U mlm-onnx"
        )
    if isinstance(version, bool) or version != FORMAT:
        raise BundleError(f"{file} has an unknown bundle format: {version!r}")
    if manifest.get("task") != TASK:
        raise BundleError(f"{path} is a bundle for {manifest.get('task')!r}, not for {TASK}")
    return manifest


def _whole(value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{value!r} is no integer from {least} to {most}")
    return value


def _locate(root: Path, name: str) -> Path:
    """The file of that name, if it is a regular one inside the bundle, reached through no link."""
    parts = PurePosixPath(name).parts
    plain = name.isprintable() and name and "\\" not in name and ":" not in name and str(PurePosixPath(name)) == name
    if not plain or name.startswith("/") or any(part in ("..", ".") for part in parts):
        raise BundleError(f"{root / MANIFEST} names a file outside the bundle: {name!r}")
    file = root
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise BundleError(f"{file} is a link: a bundle holds only its own files")
    if not file.is_file():
        raise BundleError(f"{file} is missing")
    return file


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- writing -------------------------------------------------------------------------------------


def check_target(path: Path) -> None:
    """Refuses to write where something else is: only nothing, an empty folder, or a bundle of ours may be replaced."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise BundleError(f"{path} exists and is no folder: choose another BUNDLE")
    inside = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_symlink() or not file.is_dir()}
    if not inside:
        return
    try:
        known = {*read_manifest(path).get("files", ()), MANIFEST}
    except BundleError:
        raise BundleError(f"{path} exists and is no bundle: choose another BUNDLE, nothing was written") from None
    if foreign := sorted(inside - known):
        raise BundleError(
            f"{path} holds {foreign[0]}, which is no part of the bundle: move it, or choose another BUNDLE"
        )


@contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """A folder to fill; it takes its place at `path` when the block ends well, and vanishes when it does not."""
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    beside.chmod(0o755)
    try:
        yield beside
        check_target(path)
        old = None
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(old / path.name)
        try:
            beside.rename(path)
        except OSError:
            if old is not None:
                (old / path.name).rename(path)
            raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the manifest: the facts, and size and SHA-256 of every file in the folder."""
    files = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    manifest = {"kind": KIND, "format": FORMAT, "task": TASK, **facts, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
