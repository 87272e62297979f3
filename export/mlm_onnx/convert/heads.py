"""The graphs of fine-tuned models: for a whole text, for each word, or for the answer to a question.

    classify   input_ids [B, S] → logits [B, K]
    tag        input_ids [B, S], positions [B, P] → logits [B, P, K], at the first token of each word
    answer     input_ids [B, S] → logits [B, S, 2], of the answer's beginning and end
A model that judges pairs and has two token types also reads token_type_ids [B, S].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from jax_mlm.config import ModelConfig, TaskConfig
from jax_mlm.model.encoder import Params
from mlm_onnx.bundle.layout import ANSWER, CLASSIFY, HUB_GRAPH, HUB_QUANTIZED, TAG, TASKS
from mlm_onnx.convert.encoder import OnnxEncoder
from mlm_onnx.convert.onnx_file import FUSED_OPSET, Graph
from mlm_onnx.convert.parity import EVERYWHERE, PADDED_TASK, TEXTS, WORDS, Comparison, Figures
from mlm_onnx.convert.precision import FP32, FP32_HUB, Precision
from mlm_onnx.convert.quantize import INT8_HUB
from mlm_onnx.convert.reference import reads_types
from mlm_onnx.convert.targets import HUB_PORTS, ROWS, TARGETS, Target, types_of

KINDS = {"classify": CLASSIFY, "tag": TAG, "answer": ANSWER}
"""`jax_mlm`'s kind of a task → its name in a bundle."""
TYPES = "0 at tokens of the first text and what frames it, 1 at those of the second"
LOGITS = {
    "classify": "of each label: unnormalised logarithms of probabilities, or the number of a regression",
    "tag": "unnormalised logarithms of the probability of each tag, at each requested position",
    "answer": "unnormalised logarithms of the probability that the answer begins (0) or ends (1) at each token",
}
AT = "positions of the first token of each word in its row, from 0"


# ---- how they are built --------------------------------------------------------------------------


def fast_graph(task: TaskConfig, config: ModelConfig, params: Params, precision: Precision = FP32) -> Graph:
    """Build the predictor's graph; rows are not padded."""
    g = Graph(task.kind, FUSED_OPSET)
    ids = g.input("input_ids", np.int64, ("batch", "sequence"))
    types = g.input("token_type_ids", np.int64, ("batch", "sequence")) if reads_types(config, task) else None
    at = g.input("positions", np.int64, ("batch", "words")) if task.kind == "tag" else None
    encoder = OnnxEncoder(g, config, params, precision, ids, types=types, fused=True)
    if task.kind == "classify":
        g.output("logits", of_texts(encoder, task), np.float32, ("batch", task.outputs))
    elif task.kind == "tag":
        x = encoder.hidden(at=at, split_last_query=True)
        g.output("logits", logits_at(encoder, x, task), np.float32, ("batch", "words", task.outputs))
    else:
        x = encoder.hidden(split_last_query=True)
        g.output("logits", logits_at(encoder, x, task), np.float32, ("batch", "sequence", task.outputs))
    return g


def hub_graph(task: TaskConfig, config: ModelConfig, params: Params, precision: Precision = FP32_HUB) -> Graph:
    """Build Hugging Face's graph: input_ids, attention_mask (token_type_ids) [B, S] → logits, under its names.

    Those of a text are [B, K], of words [B, S, K]; of an answer there are two outputs [B, S].
    """
    g = Graph(task.kind)
    shape = ("batch_size", "sequence_length")
    ids, mask = (g.input(name, np.int64, shape) for name in ("input_ids", "attention_mask"))
    types = g.input("token_type_ids", np.int64, shape) if types_of(config) else None
    encoder = OnnxEncoder(g, config, params, precision, ids, mask, types)
    if task.kind == "classify":
        g.output("logits", of_texts(encoder, task), np.float32, (shape[0], task.outputs))
        return g
    logits = logits_at(encoder, encoder.hidden(), task)
    if task.kind == "tag":
        g.output("logits", logits, np.float32, (*shape, task.outputs))
        return g
    for name, part in zip(("start_logits", "end_logits"), g.split(logits, (1, 1), axis=-1), strict=True):
        g.output(name, g.op("Squeeze", part, g.ints(-1)), np.float32, shape)
    return g


def of_texts(encoder: OnnxEncoder, task: TaskConfig) -> str:
    """Add the logits [B, K] of whole texts, from the first token or the mean of all."""
    g, c = encoder.g, encoder.c
    if task.pooling == "cls":
        first = g.op("Slice", encoder.ids, g.ints(0), g.ints(1), g.ints(1))
        at = g.op("Sub", first, first)  # position 0 of each row, [B, 1]
        x = encoder.hidden(at=at, split_last_query=encoder.fused)
        logits = logits_at(encoder, x, task)
        return g.op("Squeeze", logits, g.ints(1))
    x = encoder.hidden(split_last_query=encoder.fused)
    x = encoder.norm(x, "final_norm") if c.norm_first else x  # the mean is that of normalised states
    if encoder.mask is None:
        x = g.op("ReduceMean", x, g.ints(1), keepdims=0)
    else:
        real = g.op("Unsqueeze", g.op("Cast", encoder.mask, to=g.type(np.float32)), g.ints(-1))
        total = g.op("ReduceSum", g.op("Mul", x, real), g.ints(1), keepdims=0)
        x = g.op("Div", total, g.op("ReduceSum", real, g.ints(1), keepdims=0))
    return classified(encoder, x, task)


def logits_at(encoder: OnnxEncoder, x: str, task: TaskConfig) -> str:
    """Add the logits [B, N, K] of hidden states [B, N, D]."""
    x = encoder.norm(x, "final_norm") if encoder.c.norm_first else x
    return classified(encoder, x, task)


def classified(encoder: OnnxEncoder, x: str, task: TaskConfig) -> str:
    """Add the family's head and the classifier, which stays in float32: [..., D] → [..., K]."""
    g, c = encoder.g, encoder.c
    if c.family == "modernbert":
        x = encoder.norm(encoder.activate(encoder.dense(x, "head"), c.head_activation or c.activation), "head_norm")
    elif task.kind == "classify":
        x = g.op("Relu" if c.family == "distilbert" else "Tanh", encoder.dense(x, "pooler"))
    kernel, bias = encoder.array("classifier", "kernel"), encoder.array("classifier", "bias")
    assert kernel is not None
    return FP32.linear(g, x, "classifier", kernel, bias)


# ---- what they are -------------------------------------------------------------------------------


def targets_of(task: TaskConfig | None) -> Sequence[Target]:
    """Return the graphs that a bundle of a run may hold: those of masked queries, or of the task it was tuned for."""
    if task is None:
        return TARGETS
    comparisons: dict[str, Comparison[Figures]] = {"classify": TEXTS, "tag": WORDS, "answer": EVERYWHERE}
    meanings = {"input_ids": ROWS, "token_type_ids": TYPES, "positions": AT, "logits": LOGITS[task.kind]}
    fast = Target(
        TASKS[KINDS[task.kind]].graph,
        partial(fast_graph, task),
        comparisons[task.kind],
        meanings,
        weights="own",
        shapes_recorded=True,
    )
    ports = {**HUB_PORTS, "logits": LOGITS[task.kind]}
    ports |= {f"{edge}_logits": f"of the answer's {edge}, at every position" for edge in ("start", "end")}
    hub = Target(
        HUB_GRAPH,
        partial(hub_graph, task),
        PADDED_TASK,
        ports,
        {"fp32": FP32_HUB},
        weights="inside",
        section="hub",
        shapes_recorded=True,
        wanted=lambda request: request.layout == "hub",
    )
    return fast, hub, replace(hub, file=HUB_QUANTIZED, precisions={"int8": INT8_HUB})
