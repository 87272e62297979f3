"""Read a bundle's manifest, and check its files before they are opened. Stdlib only."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mlm_onnx.bundle.background import BackgroundTask
from mlm_onnx.bundle.graph_check import OnnxError, check_onnx
from mlm_onnx.bundle.layout import (
    COLUMNS,
    EXAMPLE_CHARACTERS,
    EXAMPLES,
    FORMAT,
    KIND,
    LABEL_CHARACTERS,
    LARGEST,
    MANIFEST,
    MANIFEST_BYTES,
    MOST_LABELS,
    MOST_PIECES,
    PROBLEMS,
    TAG,
    TASKS,
    BundleError,
    Head,
    Json,
    Limits,
    Special,
    TaskFiles,
)

HASHED_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest is valid and whose files have the sizes it gives."""

    path: Path
    manifest: Json
    limits: Limits
    special: Special
    vocab_size: int
    """Number of tokens in the table."""
    digests: dict[str, BackgroundTask[str]] = field(default_factory=dict, compare=False, repr=False)
    """Hashes that `open_bundle` has begun to compute; the first `verify` of a file takes its SHA-256 from here."""

    @property
    def task(self) -> str:
        """Return the task by Hugging Face's name, a key of TASKS."""
        return self.manifest["task"]

    @property
    def files(self) -> TaskFiles:
        """Return where the task's graph is."""
        return TASKS[self.task]

    def file(self, name: str) -> Path:
        return self.path / name

    def check_task(self, task: str) -> None:
        """Raise BundleError, naming the command that fits, unless the bundle is for this task."""
        if self.task != task:
            raise BundleError(
                f"{self.path} is a bundle for {self.task}, not for {task}: use python -m mlm_onnx {self.files.command}"
            )

    def head(self) -> Head:
        """Return what the bundle of a fine-tuned model gives.

        Raises:
            BundleError: the manifest is incomplete or out of bounds.
        """
        try:
            return _head(self.manifest, self.files.graph)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{self.path / MANIFEST} is incomplete or out of bounds: {error}") from None

    def settle(self) -> None:
        """Block until no background task reads the files any more."""
        while self.digests:
            self.digests.popitem()[1].wait()

    def examples(self) -> tuple[str, ...]:
        """Return the example sentences of the manifest, leaving out invalid ones."""
        listed = self.manifest.get("examples")
        texts = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
        return tuple(text for text in texts[:EXAMPLES] if text.strip() and len(text) <= EXAMPLE_CHARACTERS)


def open_bundle(path: str | os.PathLike[str], full: bool = True, ahead: bool = False) -> Bundle:
    """Check the manifest, and the path and size of every file in it.

    Args:
        full: also check all hashes and graphs now. If False, whoever opens a file must call `verify` just before, so
            that a query does not wait for files that it never reads.
        ahead: start hashing the weights in the background, so that imports go on meanwhile; `verify` waits for it.

    Raises:
        BundleError: one line that names the file and what is wrong with it.
    """
    path = Path(path)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise BundleError(f"{path}: the path is not UTF-8: move the bundle, or set LC_ALL=C.UTF-8") from None
    manifest = read_manifest(path)
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise BundleError(f"{path / MANIFEST} lists no files")
    task = TASKS[manifest["task"]]
    for name in task.required:
        if name not in files:
            raise BundleError(f"{path / MANIFEST} does not list {name}")
    try:
        located = {name: _locate(path, name) for name in files}
        for name, file in located.items():
            _check_size(file, files[name])
    except OSError as error:
        raise BundleError(f"{error.filename or path}: {error.strerror or error}") from None
    try:
        limits = Limits(**{name: integer(manifest["limits"][name], 1, most) for name, most in LARGEST.items()})
        vocab_size = integer(manifest["vocab_size"], 1, 1 << 24)
        tokens = manifest["tokens"]
        mask, ids = str(tokens["mask"]["text"]), (tokens["mask"]["id"], tokens["pad"]["id"])
        mask_id, pad_id = (integer(id, 0, vocab_size - 1) for id in ids)
        excluded = tuple(integer(id, 0, vocab_size - 1) for id in (*tokens["special"], *tokens["unused"]))
        unk_id = integer(tokens["unk"]["id"], 0, vocab_size - 1) if "unk" in tokens else None
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST} is incomplete or out of bounds: {error}") from None
    if not mask:
        raise BundleError(f"{path / MANIFEST} names no mask token")
    bundle = Bundle(path, manifest, limits, Special(mask, mask_id, pad_id, excluded, unk_id), vocab_size)
    if ahead:
        bundle.digests[task.data] = BackgroundTask(lambda: sha256(located[task.data]))
    if full:
        verify(bundle, *files)
    return bundle


def opened(path: str | os.PathLike[str] | Bundle, task: str) -> Bundle:
    """Return the bundle at a path, or one that is open already, to answer with: files are verified when first read.

    Raises:
        BundleError: it is not a sound bundle, or is for another task.
    """
    bundle = path if isinstance(path, Bundle) else open_bundle(path, full=False, ahead=True)
    try:
        bundle.check_task(task)
    except BundleError:
        bundle.settle()
        raise
    return bundle


def verify(bundle: Bundle, *names: str) -> None:
    """Check path, size and SHA-256 of files that are about to be opened, and the structure of graphs.

    The files that store a graph's weights are checked along with it.

    Raises:
        BundleError: one line that names the file and what is wrong with it.
    """
    files, done, waiting = bundle.manifest["files"], set[str](), list(names)
    while waiting:
        name = waiting.pop(0)
        if name in done:
            continue
        done.add(name)
        if name not in files:
            raise BundleError(f"{bundle.path} has no {name}: convert the run again")
        try:
            file = _locate(bundle.path, name)
            _check_size(file, files[name])
            task = bundle.digests.pop(name, None)
            if (sha256(file) if task is None else task.result()) != files[name].get("sha256"):
                raise BundleError(f"{file} does not match its SHA-256 in {MANIFEST}: it is damaged or was changed")
            if name.endswith(".onnx"):
                waiting += _check_graph(bundle, name)
        except OSError as error:
            raise BundleError(f"{error.filename or bundle.file(name)}: {error.strerror or error}") from None


def _check_size(file: Path, entry: Json) -> None:
    size = file.stat().st_size
    if size != entry.get("size"):
        raise BundleError(f"{file} has {size} bytes, not {entry.get('size')}: it is damaged or cut short")


def _check_graph(bundle: Bundle, name: str) -> list[str]:
    """Check a graph's structure; return the files that store its weights."""
    folder = PurePosixPath(name).parent
    beside = {
        PurePosixPath(other).name: _locate(bundle.path, other).stat().st_size
        for other in bundle.manifest["files"]
        if PurePosixPath(other).parent == folder
    }
    try:
        used = check_onnx(bundle.file(name), beside)
    except OnnxError as error:
        raise BundleError(f"{bundle.file(name)} is refused: {error}") from None
    return [(folder / other).as_posix() for other in sorted(used)]


def read_manifest(path: Path) -> Json:
    """Return the manifest of a bundle in this format, without checking the files."""
    file = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path} is not a folder: give the folder that `mlm_onnx convert` wrote")
    if file.is_symlink() or not file.is_file():
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}")
    if file.stat().st_size > MANIFEST_BYTES:
        raise BundleError(f"{file} is too large for a manifest")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not valid JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise BundleError(f"{file} is not a manifest of mlm-onnx")
    version = manifest.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise BundleError(
            f"{path} has bundle format {version}, but this mlm-onnx reads only up to {FORMAT}: pip install -U mlm-onnx"
        )
    if isinstance(version, bool) or version != FORMAT:
        raise BundleError(f"{file} has an unknown bundle format: {repr(version)[:80]}")
    task = manifest.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise BundleError(
            f"{path} is a bundle for {repr(task)[:80]}, which this mlm-onnx does not know: pip install -U mlm-onnx"
        )
    return manifest


def _head(manifest: Json, graph: str) -> Head:
    """Read the fields of a fine-tuned model; ValueError and the like if one is missing or out of bounds."""
    labels = manifest["labels"]
    if not isinstance(labels, list) or len(labels) > MOST_LABELS or len(set(labels)) < len(labels):
        raise ValueError(f"labels are not a list of up to {MOST_LABELS} different ones")
    for label in labels:
        if not isinstance(label, str) or not 0 < len(label) <= LABEL_CHARACTERS:
            raise ValueError(f"label {str(label)[:80]!r} is not 1 to {LABEL_CHARACTERS} characters")
        if manifest["task"] == TAG and label != "O" and label[:2] not in ("B-", "I-"):
            raise ValueError(f"tag {label[:80]!r} is not one of IOB2: O, B-TYPE or I-TYPE")
    problem, answers = manifest.get("problem", PROBLEMS[0]), manifest.get("answers", {})
    if problem not in PROBLEMS:
        raise ValueError(f"problem {str(problem)[:80]!r} is not one of {', '.join(PROBLEMS)}")
    room = manifest["limits"]["max_length"]
    return Head(
        tuple(labels),
        problem,
        manifest.get("pair") is True,
        integer(manifest["windows"]["overlap"], 0, min(room, MOST_PIECES)),
        any(port["name"] == "token_type_ids" for port in manifest["graphs"][graph]["inputs"]),
        integer(answers.get("max_tokens", 1), 1, MOST_PIECES),
        answers.get("no_answer") is True,
        _columns(manifest.get("columns")),
    )


def _columns(names: object) -> tuple[str, str, str]:
    """Return the columns that were learned, leaving out what is not a name: only defaults depend on them."""
    given = names if isinstance(names, dict) else {}
    text, pair, label = (name if isinstance(name := given.get(part), str) else "" for part in COLUMNS)
    return text, pair, label


def integer(value: object, least: int, most: int) -> int:
    """Return the value if it is an integer within these bounds, else raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{repr(value)[:80]} is not an integer from {least} to {most}")
    return value


def _locate(root: Path, name: str) -> Path:
    """Return a file's path after checking that it is a regular file inside the bundle, not reached through a link."""
    parts = PurePosixPath(name).parts
    plain = name.isprintable() and name and "\\" not in name and ":" not in name and str(PurePosixPath(name)) == name
    if not plain or name.startswith("/") or any(part in ("..", ".") for part in parts):
        raise BundleError(f"{root / MANIFEST} names a file outside the bundle: {name[:200]!r}")
    file = root
    for part in parts:
        file = file / part
        if file.is_symlink():
            raise BundleError(f"{file} is a link: a bundle may contain only its own files")
    if not file.is_file():
        raise BundleError(f"{file} is missing")
    return file


def sha256(file: Path) -> str:
    """Hash a file in parts that release the GIL; it is read, not mapped, so that truncating it is only an error."""
    digest, part = hashlib.sha256(), memoryview(bytearray(HASHED_AT_ONCE))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(part):
            digest.update(part[:size])
    return digest.hexdigest()
