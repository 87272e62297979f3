"""Answer from an ONNX bundle: `FillMask("BUNDLE")("text with [MASK]")`, `Classify`, `Tag` or `Answer`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlm_onnx.answer.predictor import FillMask
    from mlm_onnx.answer.questions import Answer
    from mlm_onnx.answer.tasks import Classify, Tag
    from mlm_onnx.bundle.layout import BundleError, QueryError

# Since 1.29, onnxruntime's Linux wheels report each session to Microsoft unless this is set before the import; the
# thread that reports also keeps forked children from exiting. Set the variable to 0 to turn reporting back on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Answer", "BundleError", "Classify", "FillMask", "QueryError", "Tag"]
_HOME = {
    **dict.fromkeys(("BundleError", "QueryError"), "bundle.layout"),
    **dict.fromkeys(("Classify", "Tag"), "answer.tasks"),
    "Answer": "answer.questions",
    "FillMask": "answer.predictor",
}


def __getattr__(name: str) -> object:
    """Load onnxruntime only when something that needs it is used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
