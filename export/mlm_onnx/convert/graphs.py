"""Config and weights → ONNX graph, built node by node rather than traced, so that it holds only what an answer needs.

Axes, as in `jax_mlm.model`: B batch, S sequence, P asked positions, D model width, E embedding width, F feed-forward
width, H heads, K head size, V vocabulary.

Three things make the fast graph fast: the head and the vocabulary projection see only the asked positions; so do the
queries and the feed-forward layer of the last encoder layer; and the table is the left factor of the projection
(table · xᵀ), so that onnxruntime reads it in place, shared with the embedding lookup, instead of repacking a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mlm_onnx.convert.encoder import _Encoder
from mlm_onnx.convert.onnx_file import FUSED_OPSET, Graph
from mlm_onnx.convert.precision import FP32, FP32_HUB, Precision

if TYPE_CHECKING:
    from jax_mlm.config import ModelConfig


TYPED = ("bert", "albert")
"""Families whose models take token_type_ids."""


def fill_mask_graph(config: ModelConfig, params: Mapping[str, Any], precision: Precision = FP32) -> Graph:
    """The predictor's graph: input_ids [B, S], positions [B, P] → logits [B, P, V] there. Rows need no padding."""
    g = Graph("fill_mask", FUSED_OPSET)
    ids = g.input("input_ids", np.int64, ("batch", "sequence"))
    at = g.input("positions", np.int64, ("batch", "masks"))
    encoder = _Encoder(g, config, params, precision, ids, fused=True)
    x = encoder.hidden(at=at, apart=True)
    g.output("logits", encoder.vocabulary(x, at), np.float32, ("batch", "masks", config.vocab_size))
    return g


def embed_graph(config: ModelConfig, params: Mapping[str, Any], precision: Precision = FP32) -> Graph:
    """For a vector of a text: input_ids [B, S] → embedding [B, D], the mean of the last hidden states over a row.

    Special tokens count, and the final norm is applied where the model has one: sentence-transformers makes the same
    of the same model by mean pooling. Its weights are those of `fill_mask_graph`, under the same names.
    """
    g = Graph("embed", FUSED_OPSET)
    ids = g.input("input_ids", np.int64, ("batch", "sequence"))
    encoder = _Encoder(g, config, params, precision, ids, fused=True)
    x = encoder.hidden(apart=True)
    x = encoder.norm(x, "final_norm") if config.norm_first else x
    g.output("embedding", g.op("ReduceMean", x, g.ints(1), keepdims=0), np.float32, ("batch", config.width))
    return g


def masked_lm_graph(config: ModelConfig, params: Mapping[str, Any], precision: Precision = FP32_HUB) -> Graph:
    """Hugging Face's graph: input_ids, attention_mask (token_type_ids) [B, S] → logits everywhere [B, S, V].

    Names are optimum's, which is what optimum and transformers.js look for. Padded keys are not seen; what a padded
    query computes is finite and means nothing.
    """
    g = Graph("masked_lm")
    shape = ("batch_size", "sequence_length")
    ids, mask = (g.input(name, np.int64, shape) for name in ("input_ids", "attention_mask"))
    types = g.input("token_type_ids", np.int64, shape) if config.family in TYPED and config.token_types else None
    encoder = _Encoder(g, config, params, precision, ids, mask, types)
    g.output("logits", encoder.vocabulary(encoder.hidden(), ids), np.float32, (*shape, config.vocab_size))
    return g


def attention_graph(config: ModelConfig, params: Mapping[str, Any], precision: Precision = FP32) -> Graph:
    """For looking inside: input_ids [B, S] → what each token attends to, [layers, B, H, S, S]; its last axis sums to 1.

    Its weights are those of `fill_mask_graph`, under the same names, so that a bundle stores them once.
    """
    g = Graph("attention")
    shape, last = ("batch", "sequence"), config.layers - 1
    encoder = _Encoder(g, config, params, precision, g.input("input_ids", np.int64, shape))
    x = encoder.embed()
    for index in range(last):
        x = encoder.layer(x, index, None)
    q, k, _ = encoder.queries_keys_values(x, last, None, last=True)
    weights = [*encoder.attended, encoder.attention_weights(q, k, config.window(last), None)]
    every = g.op("Concat", *(g.op("Unsqueeze", layer, g.ints(0)) for layer in weights), axis=0)
    g.output("attention", every, np.float32, (config.layers, "batch", config.heads, "sequence", "sequence"))
    return g
