"""The folder of a hosted Space: `convert --for space` writes the demo's page around a bundle. Stdlib only.

The package itself is copied beside app.py, so that the Space installs nothing but published packages.
"""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from mlm_onnx.bundle.about import memorised
from mlm_onnx.bundle.layout import MANIFEST, BundleError, Json
from mlm_onnx.bundle.write import check_target, naming, write_atomically

BUNDLE_FOLDER, PACKAGE = "bundle", "mlm_onnx"
README, APP, REQUIREMENTS = "README.md", "app.py", "requirements.txt"
KNOWN = frozenset({README, APP, REQUIREMENTS, BUNDLE_FOLDER, PACKAGE, ".git", ".gitattributes", "__pycache__"})
"""A Space is a repository, so a clone of one may be written into."""
NEEDED = ("numpy>=1.26", "onnxruntime>=1.30", "tokenizers>=0.22.1")
GRADIO = "6.31.0"
"""The version that the page was tested with; used if none is installed."""
SUFFIXES = (".py", ".css", ".js")

APP_TEXT = '''\
"""A page that fills in masked words and explains what its answers depend on: `python app.py`, or a hosted Space."""

from pathlib import Path

from mlm_onnx.demo import launch

launch(Path(__file__).parent / "bundle")
'''
README_TEXT = """\
---
title: Fill the mask
emoji: 🔎
colorFrom: blue
colorTo: indigo
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
pinned: false
short_description: Hide a word, see what a masked language model expects
---

# Fill the mask

Hide a word of a sentence to see what the model expects there, and what its answer depends on.
{memorised}
To try it on your own machine: `pip install -r requirements.txt`, then `python app.py`.
"""


def check_space(out: Path) -> Path:
    """Return the folder for the bundle after checking that a Space may be written around it.

    Raises:
        BundleError: something else is in the way.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BundleError(f"{out} exists and is not a folder: choose another one")
    if (out / MANIFEST).exists():
        raise BundleError(f"{out} is a bundle: choose another folder for the Space, which has its bundle inside")
    if out.is_dir() and (foreign := sorted({each.name for each in out.iterdir()} - KNOWN)):
        raise BundleError(f"{out} contains {foreign[0]}, which is not part of a Space: choose another folder")
    package = out / PACKAGE
    ours = any((package / name).is_file() for name in ("convert/space.py", "space.py"))  # the second: in older versions
    if package.is_symlink() or (package.exists() and not ours):
        raise BundleError(f"{package} exists and is not the copy that a Space contains: choose another folder")
    check_target(out / BUNDLE_FOLDER)
    return out / BUNDLE_FOLDER


def write_space(out: Path, manifest: Json) -> None:
    """Write the files around the bundle; README, app and requirements are left alone if they already exist."""
    note = memorised(manifest)
    texts = {
        README: README_TEXT.format(gradio=_gradio(), memorised=f"\n{note}\n" if note else ""),
        APP: APP_TEXT,
        REQUIREMENTS: "\n".join((*NEEDED, f"gradio=={_gradio()}")) + "\n",
    }
    for name, text in texts.items():
        if not (out / name).exists():
            write_atomically(out / name, text.encode())
    package, beside = out / PACKAGE, out / f".{PACKAGE}.{os.getpid()}"
    try:
        with naming(package):
            _copy(files(PACKAGE), beside)
            shutil.rmtree(package, ignore_errors=True)
            beside.rename(package)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _copy(source: Traversable, target: Path) -> None:
    """Copy the package's files, folder by folder."""
    target.mkdir()
    for inside in source.iterdir():
        if inside.is_dir() and inside.name not in ("__pycache__", "page"):
            _copy(inside, target / inside.name)
        elif inside.name.endswith(SUFFIXES):
            (target / inside.name).write_bytes(inside.read_bytes())


def _gradio() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        return GRADIO
