"""Names, errors and limits of a bundle. Stdlib only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]  # a JSON object; whoever reads it checks the fields it uses
FORMAT = 1
KIND = "mlm-onnx"
MANIFEST = "manifest.json"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
FAST_GRAPH = "fast/fill_mask.onnx"
FAST_DATA = "fast/fill_mask.onnx.data"
FILL, CLASSIFY, TAG, ANSWER = "fill-mask", "text-classification", "token-classification", "question-answering"
"""The tasks, as Hugging Face names them."""

PROBLEMS = ("single", "multi", "regression")
"""What a classifier gives: one of its labels, any number of them, or a number."""
EMBED_GRAPH = "fast/embed.onnx"
"""The graph of embeddings; it uses the fill-mask graph's weights, from FAST_DATA."""
ATTENTION_GRAPH = "fast/attention.onnx"
"""Only in bundles converted `--with-attention`; uses weights from FAST_DATA."""
WEB_GRAPH = "fast/fill_mask_web.onnx"
"""Only in int8 bundles converted `--for web`: FAST_GRAPH in the form that WASM runs fastest, with the same weights."""
HUB_GRAPH, HUB_QUANTIZED = "onnx/model.onnx", "onnx/model_quantized.onnx"
"""Only in bundles converted `--for hub`; optimum and transformers.js look for these names."""
LAYOUTS: Mapping[str, str] = {
    "predictor": "for FillMask (default)",
    "hub": "also for optimum and transformers.js",
    "web": "also a page for browsers",
    "space": "the demo as a hosted Space",
}
"""Layout → what the bundle can be used with."""
MANIFEST_BYTES = 4 << 20
EXAMPLES, EXAMPLE_CHARACTERS = 8, 400
"""Most example sentences in a bundle, and most characters in one of them."""
LARGEST = {"max_length": 1 << 16, "max_characters": 1 << 24, "max_texts": 1 << 20, "max_top_k": 1 << 24}
"""Upper bounds of the limits; a manifest may only set lower ones."""
COLUMNS = ("text", "pair", "label")
"""What the columns of labelled examples hold."""
MOST_LABELS, LABEL_CHARACTERS, MOST_PIECES = 10_000, 1000, 1 << 16
"""Upper bounds of a task bundle's labels, of one of them, and of the tokens of an answer or of an overlap."""


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's graph is, and who answers with it."""

    graph: str
    command: str
    """The command of `python -m mlm_onnx` that answers."""
    predictor: str
    """Its name in `mlm_onnx`."""

    @property
    def data(self) -> str:
        """Return the file of the graph's weights."""
        return f"{self.graph}.data"

    @property
    def required(self) -> tuple[str, ...]:
        """Return the files that every bundle of the task has."""
        return CONFIG, TOKENIZER, TOKENIZER_CONFIG, self.graph, self.data


TASKS: Mapping[str, TaskFiles] = {
    FILL: TaskFiles(FAST_GRAPH, "fill", "FillMask"),
    CLASSIFY: TaskFiles("fast/classify.onnx", "classify", "Classify"),
    TAG: TaskFiles("fast/tag.onnx", "tag", "Tag"),
    ANSWER: TaskFiles("fast/answer.onnx", "answer", "Answer"),
}


class MlmOnnxError(ValueError):
    """A mistake that the user can correct, reported in one line: the file, option or text, and what to do."""


class BundleError(MlmOnnxError):
    """The folder is not a bundle, is damaged, or was written by a newer version."""


class QueryError(MlmOnnxError):
    """The query cannot be answered."""


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
    """The tokens that queries and answers treat specially."""

    mask: str
    mask_id: int
    pad_id: int
    excluded: tuple[int, ...]
    """Ids that are never an answer: special tokens, and table rows without a token."""
    unk_id: int | None = None
    """The unknown token, if there is one."""


@dataclass(frozen=True)
class Head:
    """What the head of a fine-tuned model gives, and how texts are read for it."""

    labels: tuple[str, ...]
    """In the order of the logits; none of a number or an answer."""
    problem: str
    """One of PROBLEMS."""
    pair: bool
    """Whether two texts are judged together."""
    overlap: int
    """Tokens that two windows of a long text have in common."""
    types: bool
    """Whether the graph reads token types."""
    max_answer: int
    """Tokens of the longest answer."""
    no_answer: bool
    """Whether a question may have no answer in its text."""
    columns: tuple[str, str, str] = ("", "", "")
    """The columns of the text, of its pair and of the label in the file that was learned; empty if not known."""
