"""Write a bundle: a folder that is renamed to its path once complete, with the size and hash of every file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlm_onnx.bundle.layout import FILL, FORMAT, KIND, MANIFEST, BundleError, Json
from mlm_onnx.bundle.read import read_manifest, sha256


def check_target(path: Path) -> None:
    """Refuse a path unless it does not exist, is an empty folder or is a bundle that we wrote."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise BundleError(f"{path} exists and is not a folder: choose another BUNDLE")
    inside = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_symlink() or not file.is_dir()}
    if not inside:
        return
    try:
        known = {*read_manifest(path).get("files", ()), MANIFEST}
    except BundleError:
        raise BundleError(f"{path} exists and is not a bundle: choose another BUNDLE; nothing was written") from None
    if foreign := sorted(inside - known):
        raise BundleError(
            f"{path} contains {foreign[0]}, which is not part of the bundle: move it, or choose another BUNDLE"
        )


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn what the system refuses while `path` is written into a BundleError with the path and the room left there."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not str(error.filename or path).startswith(str(path.parent)):
            raise
        raise BundleError(f"{path}: {error.strerror}{_room(path, error)}") from error


def _room(path: Path, error: OSError) -> str:
    import errno
    import shutil  # imported late: queries start faster without it

    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    return f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB free): make room there"


@contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; rename it to `path` if the block succeeds, and remove it if the block fails."""
    import shutil
    import tempfile  # imported late: queries start faster without it

    check_target(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    beside.chmod(0o755)
    try:
        with naming(path):
            yield beside
        check_target(path)
        old = None
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.rename(old / path.name)
        try:
            beside.rename(path)
        except BaseException:  # a request to stop, too
            if old is not None and not path.exists():
                (old / path.name).rename(path)
            raise
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def seal(folder: Path, fields: Json) -> None:
    """Write the manifest: these fields, and the size and SHA-256 of every file in the folder.

    The task is to answer masked queries, unless the fields name another.
    """
    files = {
        file.relative_to(folder).as_posix(): {"size": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    manifest = {"kind": KIND, "format": FORMAT, "task": FILL, **fields, "files": files}
    write_json(folder / MANIFEST, manifest)


def write_json(file: Path, value: Json) -> None:
    """Write JSON, indented for people to read; what UTF-8 has no bytes for is escaped."""
    content = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    file.write_text(content, encoding="utf-8", errors="backslashreplace")


def write_atomically(file: Path, content: bytes) -> None:
    """Write to a temporary file beside it, then rename, so that no process ever sees half a file."""
    import tempfile  # imported late: queries start faster without it

    with naming(file):
        number, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with open(number, "wb") as beside:
                beside.write(content)
            Path(name).chmod(0o644)
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
