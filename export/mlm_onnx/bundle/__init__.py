"""The bundle on disk: its layout, reading, checking and writing. Stdlib only."""

from mlm_onnx.bundle.layout import BundleError, QueryError
from mlm_onnx.bundle.read import open_bundle

__all__ = ["BundleError", "QueryError", "open_bundle"]
