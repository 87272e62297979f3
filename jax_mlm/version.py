"""Versions of installed distributions."""

from __future__ import annotations

import importlib.metadata


def package_version(name: str) -> str:
    """The version of an installed distribution, or words that say that there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def versions() -> str:
    """Return one line: this distribution and what it computes with."""
    return f"jax_mlm {package_version('jax-mlm')}, jax {package_version('jax')}"
