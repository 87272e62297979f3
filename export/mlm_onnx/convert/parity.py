"""How far an ONNX graph is from the JAX model, on random tokens: what every conversion must pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime as ort

from jax_mlm.config import ModelConfig
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import MaskedLM
from mlm_onnx.answer.session import as_written
from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.convert.precision import Precision

TOLERANCE = 1e-4
"""Largest difference of a logit between ONNX in float32 and JAX."""
COARSEST = 0.25
"""Largest root mean square error of int8 logits, in standard deviations of the logits."""
Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(ids [B, S], positions [B, P]) → logits [B, P, V]."""
Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(ids [B, S], positions [B, P]) → embeddings [B, D], whatever the positions: JAX compiles once for both answers."""
PaddedForward = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(ids [B, S], attention mask [B, S], token types [B, S]) → logits [B, S, V]."""
Shapes = tuple[tuple[int, int, int], ...]


class ParityError(BundleError):
    """The graph does not compute what the JAX model computes, so no bundle was written."""


@dataclass(frozen=True)
class Parity:
    """How far the graph is from the JAX model, over all shapes."""

    max_difference: float
    rms_difference: float
    logit_std: float
    top1_agreement: float


@dataclass(frozen=True)
class EmbeddingParity:
    """How far embeddings are from JAX's, over all shapes."""

    max_difference: float
    rms_difference: float
    std: float
    """Of the numbers of JAX's embeddings."""
    least_cosine: float
    """Of the angle between an embedding and JAX's."""


def parity_shapes(max_length: int) -> Shapes:
    """(batch, length, positions): one token, a usual query, several rows, several positions, the longest text."""
    wanted = ((1, 1, 1), (1, 18, 1), (3, 7, 2), (2, 128, 19), (1, max_length, 2))
    return tuple(dict.fromkeys((b, min(s, max_length), min(p, s, max_length)) for b, s, p in wanted))


def padded_shapes(max_length: int) -> Shapes:
    """(batch, length, tokens of the shortest row)."""
    wanted = ((1, 18, 18), (4, 128, 1), (1, min(max_length, 512), 300))
    return tuple(dict.fromkeys((b, min(s, max_length), min(n, s, max_length)) for b, s, n in wanted))


# ---- the two sides -------------------------------------------------------------------------------


def jax_forward(model: ModelConfig, params: Mapping[str, Any]) -> Forward:
    """The JAX model in float32 on the CPU, where matrix products are exact to float32."""
    return jax_sides(model, params)[0]


def jax_sides(model: ModelConfig, params: Mapping[str, Any]) -> tuple[Forward, Embed]:
    """The same, and its embeddings: the mean over a row of the last hidden states, after the final norm if any.

    Both come of one compiled function.
    """
    both = _jax(model, params)

    def side(which: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        return lambda ids, at: both(ids, np.ones(ids.shape, np.int32), None, at)[which]

    return side(0), side(1)


def jax_padded(model: ModelConfig, params: Mapping[str, Any]) -> PaddedForward:
    """The same at every position, with padding and token types."""
    padded = _jax(model, params)

    def run(ids: np.ndarray, mask: np.ndarray, types: np.ndarray) -> np.ndarray:
        at = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        return padded(ids, mask, types if model.token_types else None, at)[0]

    return run


def _jax(model: ModelConfig, params: Mapping[str, Any]) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Logits and embeddings. Short inputs are padded to one shape, so that they compile once; it changes neither."""
    cpu = jax.local_devices(backend="cpu")[0]

    def both(encoder: MaskedLM, inputs: Inputs, at: jax.Array, types: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        x = encoder.hidden(inputs, types)
        logits = encoder.vocabulary(jnp.take_along_axis(x, at[..., None], axis=1))
        flat = x.reshape(-1, x.shape[-1])
        x = (encoder.final_norm(flat) if model.norm_first else flat).reshape(x.shape)
        real = (inputs.segments > 0)[..., None]
        return logits, jnp.where(real, x, 0).sum(1) / jnp.maximum(real.sum(1), 1)

    forward = jax.jit(lambda params, *given: MaskedLM(model).apply({"params": params}, *given, method=both))
    placed = jax.device_put(params, cpu)
    B, S, P = 4, min(64, model.max_length), 64

    def run(ids: np.ndarray, segments: np.ndarray, types: np.ndarray | None, at: np.ndarray) -> Any:
        (b, s), p = ids.shape, at.shape[1]
        if b <= B and s <= S and p <= P:
            ids, segments = _grown(ids, B, S), _grown(segments, B, S)
            types, at = None if types is None else _grown(types, B, S), _grown(at, B, P)
        places = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
        inputs = Inputs(ids.astype(np.int32), segments.astype(np.int32), places)
        with jax.default_device(cpu):
            types = None if types is None else types.astype(np.int32)
            logits, embeddings = forward(placed, inputs, at.astype(np.int32), types)
            return np.asarray(logits)[:b, :p], np.asarray(embeddings)[:b]

    return run


def _grown(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """With zeros after it in both axes."""
    return np.pad(array, ((0, rows - array.shape[0]), (0, columns - array.shape[1])))


def onnx_forward(graph_file: Path) -> Forward:
    session = open_session(graph_file, as_written())
    return lambda ids, at: session.run(None, {"input_ids": ids, "positions": at})[0]


def onnx_embed(graph_file: Path) -> Embed:
    session = open_session(graph_file, as_written())
    return lambda ids, at: session.run(None, {"input_ids": ids})[0]


def onnx_padded(graph_file: Path) -> PaddedForward:
    session = open_session(graph_file)
    names = [port.name for port in session.get_inputs()]

    def run(ids: np.ndarray, mask: np.ndarray, types: np.ndarray) -> np.ndarray:
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return session.run(None, {name: given[name] for name in names})[0]

    return run


def open_session(graph_file: Path, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    """By default with onnxruntime's own settings, which is what those who load the files in `onnx/` have."""
    options = options or ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(graph_file), options, providers=["CPUExecutionProvider"])


# ---- comparison ----------------------------------------------------------------------------------


def compare(reference: Forward, ours: Forward, vocab_size: int, shapes: Shapes) -> Parity:
    """Random tokens and positions, the same at each call."""
    return _over((reference(ids, at), ours(ids, at)) for ids, at in _random(vocab_size, shapes))


def compare_embeddings(reference: Embed, ours: Embed, vocab_size: int, shapes: Shapes) -> EmbeddingParity:
    """The same random tokens."""
    pairs = [(reference(ids, at), ours(ids, at)) for ids, at in _random(vocab_size, shapes)]
    expected, got = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    difference = np.abs(expected - got)
    cosine = (expected * got).sum(-1) / (np.linalg.norm(expected, axis=-1) * np.linalg.norm(got, axis=-1))
    worst = float(difference.max()) if np.isfinite(difference).all() else float("inf")
    return EmbeddingParity(
        worst, float(np.square(difference).mean() ** 0.5), float(expected.std()), float(cosine.min())
    )


def _random(vocab_size: int, shapes: Shapes) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """(ids, positions) of each shape."""
    rng = np.random.default_rng(0)
    for batch, length, positions in shapes:
        ids = rng.integers(0, vocab_size, (batch, length))
        yield ids, np.stack([rng.permutation(length)[:positions] for _ in range(batch)])


def compare_padded(
    reference: PaddedForward, ours: PaddedForward, vocab_size: int, shapes: Shapes, token_types: int = 0
) -> Parity:
    """Random tokens, types and row lengths; what stands in the padding is random too, and must not matter."""
    rng = np.random.default_rng(0)

    def pairs() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for batch, length, shortest in shapes:
            ids = rng.integers(0, vocab_size, (batch, length))
            types = rng.integers(0, max(token_types, 1), (batch, length))
            lengths = rng.integers(shortest, length + 1, batch)
            lengths[0] = shortest
            mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
            real = mask.astype(bool)
            expected = reference(ids, mask, types)[real]
            yield expected, ours(np.where(real, ids, rng.integers(0, vocab_size, ids.shape)), mask, types)[real]

    return _over(pairs())


def _over(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Parity:
    """Over pairs of logits [..., V], expected and found."""
    worst, squares, spread, agree, rows = 0.0, 0.0, 0.0, 0, 0
    for expected, got in pairs:
        difference = np.abs(expected - got)
        worst = max(worst, float(difference.max())) if np.isfinite(difference).all() else float("inf")
        here = difference[..., 0].size
        squares += float(np.square(difference, dtype=np.float64).mean()) * here
        spread = max(spread, float(expected.std()))
        agree += int((expected.argmax(-1) == got.argmax(-1)).sum())
        rows += here
    return Parity(worst, (squares / rows) ** 0.5, spread, agree / rows)


def check(precision: Precision, parity: Parity | EmbeddingParity) -> None:
    """Raises ParityError where the graph is not the model."""
    what, spread = ("logit", parity.logit_std) if isinstance(parity, Parity) else ("embedding", parity.std)
    if precision.name == "fp32" and not parity.max_difference <= TOLERANCE:
        raise ParityError(
            f"the graph differs from the JAX model by {parity.max_difference:.1e} in a number of its {what}s (at most "
            f"{TOLERANCE:g} is allowed), so nothing was written: please report this with the run's run.json"
        )
    if not parity.rms_difference <= COARSEST * spread:
        raise ParityError(
            f"{precision.name} changes the {what}s by {parity.rms_difference:.2g} on average, where they spread over "
            f"{spread:.2g}, so nothing was written: use --dtype fp32"
        )
