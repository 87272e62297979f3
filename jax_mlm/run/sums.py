"""Checksums of a checkpoint: `sums.json` in its folder, written before the folder gets its name."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

from jax_mlm.config import Json
from jax_mlm.errors import UserError
from jax_mlm.files import checksum, patience, write_atomically

SUMS, FORMAT = "sums.json", 1
UNFINISHED = "*.orbax-checkpoint-tmp*"
"""Folders of saves that are under way, were cut short or failed."""
METADATA, COMMITTED = "_CHECKPOINT_METADATA", "commit_success.txt"
"""What Orbax writes once more, and at the very end: the first is compared without the time, the second not at all."""
META, SEALED = "meta/metadata", "sums"
"""The JSON beside the arrays, and its key that tells whether sums belong to them: without it they predate sums."""


def seal(checkpoints: Path, identity: Json) -> None:
    """Write the sums of the save that is about to be finished, and what the run is that it belongs to."""
    for folder in checkpoints.glob(UNFINISHED):
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files = {
            name: [(folder / name).stat().st_size, checksum(folder / name)]
            for name in names
            if name not in (SUMS, METADATA, COMMITTED)
        }
        sums = {"format": FORMAT, "files": files, "metadata": _metadata(folder), "run": identity}
        write_atomically(folder / SUMS, json.dumps({"sums": sums, "crc": _crc(sums)}) + "\n")


def damage(folder: Path, largest: float = math.inf) -> str:
    """Return what is wrong with a checkpoint, or an empty string; only the sizes of files over `largest` are compared.

    Raises:
        UserError: it was written by a later version.
    """
    try:
        with patience(f"checking {folder}"):
            return _damage(folder, largest)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        name = Path(error.filename).relative_to(folder) if error.filename else "a file"
        return f"{name} is missing" if missing else f"{name} cannot be read ({error.strerror})"
    except _Broken as error:
        return str(error)
    except (KeyError, TypeError, AttributeError):
        return f"{SUMS} has changed since it was written"


def _damage(folder: Path, largest: float) -> str:
    meta = _json(folder, META)
    if not (folder / SUMS).exists():
        return f"{SUMS} is missing" if SEALED in meta else ""
    body = _json(folder, SUMS)
    sums = body["sums"]
    if body["crc"] != _crc(sums):
        return f"{SUMS} has changed since it was written"
    if sums["format"] > FORMAT:
        raise UserError(f"{folder} was saved by a newer version of jax_mlm: use that version to read it")
    for name, (size, crc) in sums["files"].items():
        found = (folder / name).stat().st_size
        if found != size:
            return f"{name} has {found} of {size} bytes"
        if size <= largest and checksum(folder / name) != crc:
            return f"{name} has changed since it was written"
    return "" if _metadata(folder) == sums["metadata"] else f"{METADATA} has changed since it was written"


def identity_of(folder: Path) -> Json:
    """Return what the run was that a checkpoint belongs to; nothing if it has no sums, or damaged ones."""
    try:
        body = _json(folder, SUMS)
        return body["sums"].get("run", {}) if body["crc"] == _crc(body["sums"]) else {}
    except (OSError, _Broken, KeyError, AttributeError):
        return {}


def _metadata(folder: Path) -> int | None:
    """Return the checksum of what Orbax notes about the whole checkpoint, but for the time when it was finished."""
    if not (folder / METADATA).exists():
        return None
    return _crc({key: value for key, value in _json(folder, METADATA).items() if key != "commit_timestamp_nsecs"})


class _Broken(Exception):
    """A file that does not hold JSON."""


def _json(folder: Path, name: str) -> Json:
    try:
        value = json.loads((folder / name).read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _Broken(f"{name} has changed since it was written")
    return value


def _crc(value: Any) -> int:  # any JSON
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
