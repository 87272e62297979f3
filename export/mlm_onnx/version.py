"""Versions of installed distributions."""

from __future__ import annotations


def package_version(name: str) -> str:
    """Return the version of an installed distribution, or a note that it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # imported late: queries start faster without it

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"


def versions() -> str:
    """Return the versions of this distribution and of onnxruntime, in one line."""
    return f"mlm_onnx {package_version('mlm-onnx')}, onnxruntime {package_version('onnxruntime')}"
