"""What goes into each graph of a bundle and what comes out, for the manifest: names, types and shapes, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlm_onnx.bundle.layout import ATTENTION_GRAPH, EMBED_GRAPH, FAST_GRAPH, HUB_GRAPH, HUB_QUANTIZED, WEB_GRAPH
from mlm_onnx.convert.parity import open_session

ROWS = "ids of a text's tokens, framed by special tokens as tokenizer.json does; rows of one length, none padded"
PADDED = "ids of a text's tokens, framed by special tokens as tokenizer.json does; shorter rows are padded"
HUB = {
    "input_ids": PADDED,
    "attention_mask": "1 where input_ids holds a token, 0 where it is padded",
    "token_type_ids": "0 in the first segment of a row, 1 in the second",
    "logits": "unnormalised logarithms of the probability of each token of the vocabulary, at every position",
}
FILL_MASK = {
    "input_ids": ROWS,
    "positions": "where in its row each asked mask is, from 0",
    "logits": "unnormalised logarithms of the probability of each token of the vocabulary, at each asked position",
}
MEANINGS: Mapping[str, Mapping[str, str]] = {
    FAST_GRAPH: FILL_MASK,
    WEB_GRAPH: FILL_MASK,
    EMBED_GRAPH: {
        "input_ids": ROWS,
        "embedding": "mean over a row, special tokens included, of the last hidden states (after the final norm)",
    },
    ATTENTION_GRAPH: {
        "input_ids": ROWS,
        "attention": "how much each token (second last axis) attends to each (last axis, sums to 1), by layer and head",
    },
    HUB_GRAPH: HUB,
    HUB_QUANTIZED: HUB,
}
DTYPES = {"tensor(int64)": "int64", "tensor(float)": "float32"}


def ports(folder: Path, name: str) -> dict[str, Any]:
    """Inputs and outputs of a graph, as onnxruntime sees them."""
    session = open_session(folder / name)

    def facts(ports: Any) -> list[dict[str, Any]]:
        return [
            {"name": port.name, "dtype": DTYPES[port.type], "shape": port.shape, "meaning": MEANINGS[name][port.name]}
            for port in ports
        ]

    return {"inputs": facts(session.get_inputs()), "outputs": facts(session.get_outputs())}
