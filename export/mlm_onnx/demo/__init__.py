"""The page of `python -m mlm_onnx demo`. Needs Gradio."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlm_onnx.demo.app import launch, serve

__all__ = ["launch", "serve"]


def __getattr__(name: str) -> object:
    """Load Gradio only when the page is used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mlm_onnx.demo.app"), name)
