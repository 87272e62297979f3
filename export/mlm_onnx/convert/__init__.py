"""Run directory → bundle. Needs jax_mlm and onnx."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlm_onnx.convert.pipeline import convert, write_bundle
    from mlm_onnx.convert.request import Request

__all__ = ["Request", "convert", "write_bundle"]


def __getattr__(name: str) -> object:
    """Import JAX and onnx only when a name is used that needs them (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "request" if name == "Request" else "pipeline"
    return getattr(import_module(f"mlm_onnx.convert.{home}"), name)
