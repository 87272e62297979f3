"""The bundle on disk: layout, reading, writing, and what is checked first. Stdlib only."""

from mlm_onnx.bundle.layout import BundleError, QueryError
from mlm_onnx.bundle.read import open_bundle

__all__ = ["BundleError", "QueryError", "open_bundle"]
