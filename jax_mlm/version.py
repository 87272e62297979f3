"""Versions of installed distributions."""

from __future__ import annotations


def package_version(name: str) -> str:
    """Return the version of an installed distribution, or a phrase if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # imported late: command lines start faster

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"


def versions() -> str:
    """Return one line: the versions of this distribution and of JAX."""
    return f"jax_mlm {package_version('jax-mlm')}, jax {package_version('jax')}"
