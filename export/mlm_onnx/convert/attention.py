"""Writes the graph of attention into a bundle, compared with the attention of the JAX model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_mlm.config import ModelConfig
from jax_mlm.model.encoder import Inputs, make_attention
from mlm_onnx.bundle.layout import ATTENTION_GRAPH, FAST_GRAPH
from mlm_onnx.convert.graphs import attention_graph
from mlm_onnx.convert.parity import COARSEST, TOLERANCE, ParityError, open_session
from mlm_onnx.convert.precision import Precision

Attend = Callable[[np.ndarray], np.ndarray]
"""ids [B, S] → attention [layers, B, H, S, S]."""
LONGEST = 160
"""Tokens compared: more than a local window holds."""


def jax_attention(model: ModelConfig, params: Mapping[str, Any]) -> Attend:
    """The JAX model in float32 on the CPU; shorter inputs are padded to one shape, so that it compiles once."""
    cpu = jax.local_devices(backend="cpu")[0]
    attend, placed = jax.jit(make_attention(model)), jax.device_put(params, cpu)
    rows, columns = max(b for b, _ in shapes(model.max_length)), max(s for _, s in shapes(model.max_length))

    def run(ids: np.ndarray) -> np.ndarray:
        b, s = ids.shape
        tokens, segments = np.zeros((2, rows, columns), np.int32)
        tokens[:b, :s], segments[:b, :s] = ids, 1
        places = np.broadcast_to(np.arange(columns, dtype=np.int32), tokens.shape)
        with jax.default_device(cpu):
            return np.asarray(attend(placed, Inputs(tokens, segments, places)))[:, :b, :, :s, :s]

    return run


def shapes(max_length: int) -> tuple[tuple[int, int], ...]:
    """(batch, length): one token, a usual query, several rows, a text beyond the local window."""
    return tuple(dict.fromkeys((b, min(s, max_length)) for b, s in ((1, 1), (1, 18), (2, 7), (1, LONGEST))))


def write_attention(
    folder: Path,
    model: ModelConfig,
    params: Mapping[str, Any],
    precision: Precision,
    reference: Attend,
    vocab_size: int,
) -> dict[str, float]:
    """Writes the graph beside the fill-mask graph of the same precision, whose weights it shares.

    Returns:
        {"max_difference", "moved"}: of an attention weight from JAX's; and the share of a token's attention that goes
        elsewhere, on average.

    Raises:
        ParityError: it is not the JAX model's attention.
    """
    file = folder / ATTENTION_GRAPH
    attention_graph(model, params, precision).write_sharing(file, folder / FAST_GRAPH)
    session, rng = open_session(file), np.random.default_rng(0)
    worst, moved, count = 0.0, 0.0, 0
    for shape in shapes(model.max_length):
        ids = rng.integers(0, vocab_size, shape)
        difference = np.abs(reference(ids) - session.run(None, {"input_ids": ids})[0])
        worst = max(worst, float(difference.max())) if np.isfinite(difference).all() else float("inf")
        moved += float(difference.sum(-1, dtype=np.float64).sum()) / 2
        count += difference[..., 0].size
    if not (worst <= TOLERANCE if precision.name == "fp32" else moved <= COARSEST * count):
        raise ParityError(
            f"--with-attention: the {precision.name} graph differs from the JAX model by {worst:.1e} in an attention "
            f"weight, so nothing was written: leave out --with-attention"
        )
    return {"max_difference": worst, "moved": moved / count}
