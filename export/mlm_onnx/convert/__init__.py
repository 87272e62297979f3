"""Run directory → bundle: needs jax_mlm and onnx."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlm_onnx.convert.pipeline import convert, write_bundle

__all__ = ["convert", "write_bundle"]


def __getattr__(name: str) -> object:
    """Loads what it needs only when it is asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mlm_onnx.convert.pipeline"), name)
