"""Versions of installed distributions."""

from __future__ import annotations


def package_version(name: str) -> str:
    """Return the version of an installed distribution, or words where there is none."""
    from importlib.metadata import PackageNotFoundError, version  # a command line is read faster without

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"


def versions() -> str:
    """Return one line: this distribution and what it computes with."""
    return f"jax_mlm {package_version('jax-mlm')}, jax {package_version('jax')}"
