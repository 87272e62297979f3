"""The graphs that a bundle may hold: how each is built from config and weights, compared with JAX, and described.

A graph is built node by node rather than traced, so that it holds only what an answer needs. To add one,
write a function that builds it and an entry of TARGETS; for a new layout, add a line to LAYOUTS (`bundle/layout.py`).

Axes, as in `jax_mlm.model`: B batch, S sequence, P requested positions, D model width, E embedding width,
F feed-forward width, H heads, K head size, V vocabulary.

Three things make the fast graph fast: the head and the vocabulary projection see only the requested positions; so do
the queries and the feed-forward layer of the last encoder layer; and the table is the left factor of the projection
(table · xᵀ), so that onnxruntime reads it in place, shared with the embedding lookup, instead of repacking a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort

from jax_mlm.config import ModelConfig
from jax_mlm.model.encoder import Params
from mlm_onnx.bundle.layout import (
    ATTENTION_GRAPH,
    EMBED_GRAPH,
    FAST_GRAPH,
    HUB_GRAPH,
    HUB_QUANTIZED,
    WEB_GRAPH,
    BundleError,
    Json,
)
from mlm_onnx.convert.encoder import OnnxEncoder
from mlm_onnx.convert.onnx_file import FUSED_OPSET, Graph
from mlm_onnx.convert.parity import (
    ATTENTION_WEIGHTS,
    EMBEDDINGS,
    LOGITS,
    PADDED_LOGITS,
    Comparison,
    Figures,
    Shapes,
    onnx_side,
    open_session,
)
from mlm_onnx.convert.precision import FP32, FP32_HUB, Precision
from mlm_onnx.convert.quantize import INT8, INT8_HUB, INT8_WEB
from mlm_onnx.convert.reference import Reference
from mlm_onnx.convert.request import Request


def types_of(config: ModelConfig) -> int:
    """Return how many token types a text's tokenizer should tell apart: 0 where the hub graph takes none."""
    return config.token_types if config.family in ("bert", "albert") and config.token_types > 1 else 0


# ---- how they are built --------------------------------------------------------------------------


def fill_mask_graph(config: ModelConfig, params: Params, precision: Precision = FP32) -> Graph:
    """Build the predictor's graph: input_ids [B, S], positions [B, P] → logits [B, P, V]. Rows are not padded."""
    g = Graph("fill_mask", FUSED_OPSET)
    ids = g.input("input_ids", np.int64, ("batch", "sequence"))
    at = g.input("positions", np.int64, ("batch", "masks"))
    encoder = OnnxEncoder(g, config, params, precision, ids, fused=True)
    x = encoder.hidden(at=at, split_last_query=True)
    g.output("logits", encoder.vocabulary(x, at), np.float32, ("batch", "masks", config.vocab_size))
    return g


def embed_graph(config: ModelConfig, params: Params, precision: Precision = FP32) -> Graph:
    """Build the embedding graph: input_ids [B, S] → embedding [B, D], the mean over a row of the last hidden states.

    Special tokens count, and the final norm is applied if the model has one; sentence-transformers computes the same
    by mean pooling. The weights are those of `fill_mask_graph`, under the same names.
    """
    g = Graph("embed", FUSED_OPSET)
    ids = g.input("input_ids", np.int64, ("batch", "sequence"))
    encoder = OnnxEncoder(g, config, params, precision, ids, fused=True)
    x = encoder.hidden(split_last_query=True)
    x = encoder.norm(x, "final_norm") if config.norm_first else x
    g.output("embedding", g.op("ReduceMean", x, g.ints(1), keepdims=0), np.float32, ("batch", config.width))
    return g


def masked_lm_graph(config: ModelConfig, params: Params, precision: Precision = FP32_HUB) -> Graph:
    """Build Hugging Face's graph: input_ids, attention_mask (token_type_ids) [B, S] → logits everywhere [B, S, V].

    The names are those that optimum and transformers.js look for. Padded keys are not seen; logits at padded positions
    are finite but mean nothing.
    """
    g = Graph("masked_lm")
    shape = ("batch_size", "sequence_length")
    ids, mask = (g.input(name, np.int64, shape) for name in ("input_ids", "attention_mask"))
    types = g.input("token_type_ids", np.int64, shape) if types_of(config) else None
    encoder = OnnxEncoder(g, config, params, precision, ids, mask, types)
    g.output("logits", encoder.vocabulary(encoder.hidden(), ids), np.float32, (*shape, config.vocab_size))
    return g


def attention_graph(config: ModelConfig, params: Params, precision: Precision = FP32) -> Graph:
    """Build the attention graph: input_ids [B, S] → attention weights [layers, B, H, S, S]; the last axis sums to 1.

    The weights are those of `fill_mask_graph`, under the same names, so that a bundle stores them once.
    """
    g = Graph("attention")
    shape, last = ("batch", "sequence"), config.layers - 1
    encoder = OnnxEncoder(g, config, params, precision, g.input("input_ids", np.int64, shape))
    x = encoder.embed()
    for index in range(last):
        x = encoder.layer(x, index, None)
    q, k, _ = encoder.queries_keys_values(x, last, None, last=True)
    weights = [*encoder.attended, encoder.attention_weights(q, k, config.window(last), None)]
    every = g.op("Concat", *(g.op("Unsqueeze", layer, g.ints(0)) for layer in weights), axis=0)
    g.output("attention", every, np.float32, (config.layers, "batch", config.heads, "sequence", "sequence"))
    return g


# ---- what they are -------------------------------------------------------------------------------

DTYPES = {"tensor(int64)": "int64", "tensor(float)": "float32"}
ROWS = "ids of a text's tokens, framed by special tokens as tokenizer.json does; rows of one length, none padded"
PADDED = "ids of a text's tokens, framed by special tokens as tokenizer.json does; shorter rows are padded"


@dataclass(frozen=True)
class Target:
    """One graph of a bundle."""

    file: str
    """Its path in the bundle."""
    build: Callable[[ModelConfig, Params, Precision], Graph]
    comparison: Comparison[Figures]
    meanings: Mapping[str, str]
    """Descriptions of each input and output, for the manifest."""
    precisions: Mapping[str, Precision] = field(default_factory=lambda: {"fp32": FP32, "int8": INT8})
    """dtype → how the graph is stored. A bundle has it in the bundle's dtype if listed here, else in float32."""
    weights: Literal["shared", "own", "inside"] = "shared"
    """Where its weights are: shared with FAST_GRAPH, in a file of its own beside it, or inside the graph's file."""
    section: str = ""
    """Section of the manifest's `parity` for its figures; empty for the top level."""
    shapes_recorded: bool = False
    """Whether that section also records the shapes that were compared."""
    wanted: Callable[[Request], bool] = lambda request: True

    def dtypes(self, request: Request) -> list[str]:
        """Return the dtypes to build and compare: float32 always, so that int8 starts from a graph known to be right.

        The bundle keeps the last one.
        """
        known = [dtype for dtype in dict.fromkeys(("fp32", request.dtype)) if dtype in self.precisions]
        return known if self.wanted(request) else []


FILL_MASK_PORTS = {
    "input_ids": ROWS,
    "positions": "positions of the requested masks in their row, from 0",
    "logits": "unnormalised logarithms of the probability of each token of the vocabulary, at each requested position",
}
HUB_PORTS = {
    "input_ids": PADDED,
    "attention_mask": "1 at tokens, 0 at padding",
    "token_type_ids": "0 in the first segment of a row, 1 in the second",
    "logits": "unnormalised logarithms of the probability of each token of the vocabulary, at every position",
}
FILL_MASK = Target(FAST_GRAPH, fill_mask_graph, LOGITS, FILL_MASK_PORTS, weights="own", shapes_recorded=True)
EMBED = Target(
    EMBED_GRAPH,
    embed_graph,
    EMBEDDINGS,
    {
        "input_ids": ROWS,
        "embedding": "mean over a row, special tokens included, of the last hidden states (after the final norm)",
    },
    section="embeddings",
)
ATTENTION = Target(
    ATTENTION_GRAPH,
    attention_graph,
    ATTENTION_WEIGHTS,
    {
        "input_ids": ROWS,
        "attention": "how much each token (second last axis) attends to each (last axis, sums to 1), by layer and head",
    },
    section="attention",
    wanted=lambda request: request.with_attention or request.layout == "space",
)
HUB = Target(
    HUB_GRAPH,
    masked_lm_graph,
    PADDED_LOGITS,
    HUB_PORTS,
    {"fp32": FP32_HUB},
    weights="inside",
    section="hub",
    shapes_recorded=True,
    wanted=lambda request: request.layout == "hub",
)
WEB = Target(
    WEB_GRAPH,
    fill_mask_graph,
    LOGITS,
    FILL_MASK_PORTS,
    {"int8": INT8_WEB},
    section="web",
    wanted=lambda request: request.layout == "web",
)
TARGETS: Sequence[Target] = (
    FILL_MASK,  # first, because it stores the weights that others share
    EMBED,
    ATTENTION,
    HUB,
    replace(HUB, file=HUB_QUANTIZED, precisions={"int8": INT8_HUB}),
    WEB,
)


def write_target(
    folder: Path, target: Target, reference: Reference, precision: Precision, shapes: Shapes
) -> tuple[Json, Json]:
    """Build a graph, write it into a bundle and compare it with the JAX model.

    Returns:
        For the manifest: its figures, and its inputs and outputs.

    Raises:
        ParityError: it does not agree with the JAX model.
        BundleError: its weights do not fit into one file.
    """
    file = folder / target.file
    file.parent.mkdir(parents=True, exist_ok=True)
    graph = target.build(reference.config, reference.params, precision)
    match target.weights:
        case "own":
            graph.write(file)
        case "shared":
            graph.write_sharing(file, folder / FAST_GRAPH)
        case "inside":
            try:
                graph.write_single(file)
            except ValueError as error:
                raise BundleError(f"{target.file}: {error}; use --for predictor") from None
    session = open_session(file, target.comparison.options)
    expected = partial(target.comparison.answer, reference)
    size, types = reference.vocab_size, reference.config.token_types
    figures = target.comparison.compare(expected, onnx_side(session), size, shapes, types)
    figures.check(precision.name)
    return dict(vars(figures)), _ports(session, target.meanings)


def _ports(session: ort.InferenceSession, meanings: Mapping[str, str]) -> Json:
    """Return a graph's inputs and outputs as onnxruntime reports them, with their meanings."""

    def described(ports: Sequence[ort.NodeArg]) -> list[Json]:
        return [
            {"name": port.name, "dtype": DTYPES[port.type], "shape": port.shape, "meaning": meanings[port.name]}
            for port in ports
        ]

    return {"inputs": described(session.get_inputs()), "outputs": described(session.get_outputs())}
