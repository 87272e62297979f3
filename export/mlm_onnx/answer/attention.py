"""What each token attends to, computed by a separate graph that is opened on first use.

Attention shows where a head looks, not why the model answers as it does; for that, use `FillMask.explain`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlm_onnx.answer.reader import Text
from mlm_onnx.answer.session import FLOATS, INTEGERS, Session
from mlm_onnx.bundle.layout import ATTENTION_GRAPH, BundleError, QueryError
from mlm_onnx.bundle.read import Bundle, integer

PORTS = {"input_ids": INTEGERS, "attention": FLOATS}
MOST_WEIGHTS = 1 << 25
"""Most attention weights for one text, over all layers and heads (128 MB)."""


@dataclass(frozen=True)
class Attention:
    """One text's attention."""

    weights: np.ndarray
    """[layers, heads, S, S]; each row holds what one token attends to, and sums to 1."""
    text: Text


class AttentionReader:
    """Reads the attention of one bundle's model; threads share it.

    Raises:
        BundleError: the bundle has no attention graph.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        if not carries_attention(bundle):
            raise BundleError(f"{bundle.path} carries no attention: convert it again with --with-attention")
        try:
            layers, _, heads, *_ = bundle.manifest["graphs"][ATTENTION_GRAPH]["outputs"][0]["shape"]
            self.layers, self.heads = (integer(size, 1, 1 << 12) for size in (layers, heads))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BundleError(f"{bundle.path}: the manifest does not describe {ATTENTION_GRAPH}: {error}") from None
        self._session = Session(bundle, ATTENTION_GRAPH, PORTS, threads)
        most = int((MOST_WEIGHTS / (self.layers * self.heads)) ** 0.5)
        self.longest = min(bundle.limits.max_length, most)
        """Most tokens a text may have for its attention to be computed."""

    def __call__(self, text: Text) -> Attention:
        """Return the attention of a text.

        Raises:
            QueryError: the text is too long.
        """
        size = len(text.ids)
        if size > self.longest:
            raise QueryError(f"the text has {size} tokens; attention is shown for up to {self.longest}")
        weights = self._session.run((self.layers, 1, self.heads, size, size), input_ids=text.ids[None])
        return Attention(weights[:, 0], text)


def carries_attention(bundle: Bundle) -> bool:
    return ATTENTION_GRAPH in bundle.manifest["files"]
