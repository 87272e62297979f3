"""Names, errors and limits of a bundle. Stdlib only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FORMAT = 1
KIND = "mlm-onnx"
TASK = "fill-mask"
MANIFEST = "manifest.json"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
FAST_GRAPH = "fast/fill_mask.onnx"
FAST_DATA = "fast/fill_mask.onnx.data"
EMBED_GRAPH = "fast/embed.onnx"
"""Its weights are those of the fill-mask graph, in the same file."""
ATTENTION_GRAPH = "fast/attention.onnx"
"""Only in bundles made `--with-attention`; its weights are in FAST_DATA."""
WEB_GRAPH = "fast/fill_mask_web.onnx"
"""Only in int8 bundles made `--for web`: FAST_GRAPH as WASM computes it fastest, on the same weights."""
HUB_GRAPH, HUB_QUANTIZED = "onnx/model.onnx", "onnx/model_quantized.onnx"
"""Only in bundles made `--for hub`: names that optimum and transformers.js look for."""
LAYOUTS: Mapping[str, str] = {
    "predictor": "for FillMask (default)",
    "hub": "also for optimum and transformers.js",
    "web": "also a page for browsers",
    "space": "the demo as a hosted Space",
}
"""Whom a bundle is made for, and what that gives."""
REQUIRED = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, FAST_GRAPH, FAST_DATA)
MANIFEST_BYTES = 4 << 20
EXAMPLES, EXAMPLE_CHARACTERS = 8, 400
"""Sentences that a bundle offers to try, and the longest."""
LARGEST = {"max_length": 1 << 16, "max_characters": 1 << 24, "max_texts": 1 << 20, "max_top_k": 1 << 24}
"""A manifest may lower these, not exceed them."""


class MlmOnnxError(ValueError):
    """A mistake that a user can correct: one line that names the file, option or text, and what to do."""


class BundleError(MlmOnnxError):
    """The folder is not a bundle, is damaged, or was written by a newer version."""


class QueryError(MlmOnnxError):
    """The query has no answer."""


@dataclass(frozen=True)
class Limits:
    """What a query may ask for."""

    max_length: int
    """Tokens of a text, special tokens included."""
    max_top_k: int
    max_characters: int = 1_000_000
    max_texts: int = 100_000


@dataclass(frozen=True)
class Special:
    """The tokens that a query or its answer treats differently."""

    mask: str
    mask_id: int
    pad_id: int
    excluded: tuple[int, ...]
    """Ids that are never an answer: special tokens, and rows of the table that no token uses."""
