"""Compare an ONNX graph with the JAX model on random tokens; every conversion must pass.

Both sides answer the same queries. A query maps the names of a graph's inputs to their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import onnxruntime as ort

from mlm_onnx.answer.session import as_written
from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.convert.reference import LONGEST, Reference

TOLERANCE = 1e-4
"""Largest difference allowed between a number from ONNX in float32 and from JAX."""
COARSEST = 0.25
"""Largest error allowed in int8: rms error of logits over their standard deviation, or share of attention moved."""
Query = Mapping[str, np.ndarray]
Side = Callable[..., np.ndarray]
"""A function that answers a query, given as keyword arguments."""
Pair = tuple[np.ndarray, np.ndarray]
"""(JAX's answer, the graph's)."""
Shapes = tuple[tuple[int, int, int], ...]
"""(batch, length, requested positions or tokens of the shortest row) of each query."""


class ParityError(BundleError):
    """The graph does not agree with the JAX model, so no bundle was written."""


def open_session(
    graph_file: Path, options: Callable[[], ort.SessionOptions] = ort.SessionOptions
) -> ort.InferenceSession:
    """Open a graph, by default with onnxruntime's default settings, as users of `onnx/` do."""
    quiet = options()
    quiet.log_severity_level = 4
    return ort.InferenceSession(str(graph_file), quiet, providers=["CPUExecutionProvider"])


def onnx_side(session: ort.InferenceSession) -> Side:
    """Return a function that answers queries with a graph, ignoring the parts of a query that are not its inputs.

    Several outputs are stacked along a last axis.
    """
    names = [port.name for port in session.get_inputs()]

    def side(**query: np.ndarray) -> np.ndarray:
        outputs = [np.asarray(each) for each in session.run(None, {name: query[name] for name in names})]
        return outputs[0] if len(outputs) == 1 else np.stack(outputs, axis=-1)

    return side


# ---- figures -------------------------------------------------------------------------------------


class Figures(Protocol):
    """How far a graph's answers differ from the JAX model's: a dataclass of numbers for the manifest."""

    def check(self, dtype: str) -> None:
        """Raise ParityError if the graph does not agree with the model."""


@dataclass(frozen=True)
class Parity:
    """How far logits differ from JAX's."""

    max_difference: float
    rms_difference: float
    logit_std: float
    top1_agreement: float

    def check(self, dtype: str) -> None:
        _check("logit", dtype, self.max_difference, self.rms_difference, self.logit_std)


@dataclass(frozen=True)
class TaskParity:
    """How far the logits of a fine-tuned model differ from JAX's."""

    max_difference: float
    rms_difference: float
    logit_rms: float
    top1_agreement: float

    def check(self, dtype: str) -> None:
        _check("logit", dtype, self.max_difference, self.rms_difference, self.logit_rms)


@dataclass(frozen=True)
class EmbeddingParity:
    """How far embeddings differ from JAX's."""

    max_difference: float
    rms_difference: float
    std: float
    """Standard deviation of the numbers in JAX's embeddings."""
    least_cosine: float
    """Cosine of the widest angle between an embedding and JAX's."""

    def check(self, dtype: str) -> None:
        _check("embedding", dtype, self.max_difference, self.rms_difference, self.std)


@dataclass(frozen=True)
class AttentionParity:
    """How far attention differs from JAX's."""

    max_difference: float
    moved: float
    """Share of a token's attention that goes to different tokens, on average."""

    def check(self, dtype: str) -> None:
        if not (self.max_difference <= TOLERANCE if dtype == "fp32" else self.moved <= COARSEST):
            raise ParityError(
                f"--with-attention: the {dtype} graph differs from the JAX model by {self.max_difference:.1e} in an "
                f"attention weight, so nothing was written: leave out --with-attention"
            )


def _check(what: str, dtype: str, worst: float, error: float, deviation: float) -> None:
    if dtype == "fp32" and not worst <= TOLERANCE:
        raise ParityError(
            f"the graph differs from the JAX model by {worst:.1e} in a number of its {what}s (at most {TOLERANCE:g} is "
            f"allowed), so nothing was written: please report this with the run's run.json"
        )
    if not error <= COARSEST * deviation:
        raise ParityError(
            f"{dtype} changes the {what}s by {error:.2g} on average, too much for their standard deviation of "
            f"{deviation:.2g}, so nothing was written: use --dtype fp32"
        )


def logit_figures(pairs: Iterable[Pair]) -> Parity:
    """Measure pairs of logits [..., V]."""
    worst, squares, deviation, agree, rows = 0.0, 0.0, 0.0, 0, 0
    for expected, got in pairs:
        difference = np.abs(expected - got)
        worst = max(worst, _largest(difference))
        here = difference[..., 0].size
        squares += float(np.square(difference, dtype=np.float64).mean()) * here
        deviation = max(deviation, float(expected.std()))
        agree += int((expected.argmax(-1) == got.argmax(-1)).sum())
        rows += here
    return Parity(worst, (squares / rows) ** 0.5, deviation, agree / rows)


def task_figures(pairs: Iterable[Pair]) -> TaskParity:
    """Measure pairs of a task's logits [..., K], whose size says more than their spread: there may be one label."""
    every = [(expected.reshape(-1, expected.shape[-1]), got.reshape(-1, got.shape[-1])) for expected, got in pairs]
    expected, got = (np.concatenate(side) for side in zip(*every, strict=True))
    difference = np.abs(expected - got)
    error, size = (float(np.square(x, dtype=np.float64).mean() ** 0.5) for x in (difference, expected))
    return TaskParity(_largest(difference), error, size, float((expected.argmax(-1) == got.argmax(-1)).mean()))


def embedding_figures(pairs: Iterable[Pair]) -> EmbeddingParity:
    """Measure pairs of embeddings [B, D]."""
    expected, got = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
    difference = np.abs(expected - got)
    cosine = (expected * got).sum(-1) / (np.linalg.norm(expected, axis=-1) * np.linalg.norm(got, axis=-1))
    error = float(np.square(difference).mean() ** 0.5)
    return EmbeddingParity(_largest(difference), error, float(expected.std()), float(cosine.min()))


def attention_figures(pairs: Iterable[Pair]) -> AttentionParity:
    """Measure pairs of attention [layers, B, H, S, S]."""
    worst, moved, count = 0.0, 0.0, 0
    for expected, got in pairs:
        difference = np.abs(expected - got)
        worst = max(worst, _largest(difference))
        moved += float(difference.sum(-1, dtype=np.float64).sum()) / 2
        count += difference[..., 0].size
    return AttentionParity(worst, moved / count)


def _largest(difference: np.ndarray) -> float:
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")


# ---- comparisons ---------------------------------------------------------------------------------

F_co = TypeVar("F_co", bound=Figures, covariant=True)


@dataclass(frozen=True)
class Comparison(Generic[F_co]):
    """One way to compare a graph with the JAX model."""

    answer: Side
    """The method of Reference that computes what the graph computes."""
    shapes: Callable[[int], Shapes]
    """The model's longest text → the shapes of the queries."""
    queries: Callable[[int, int, Shapes], Iterator[Query]]
    """(tokens, token types, shapes) → random queries, the same on every call."""
    figures: Callable[[Iterable[Pair]], F_co]
    options: Callable[[], ort.SessionOptions] = as_written
    """How a graph is opened: as FillMask does it, or with onnxruntime's default settings."""

    def compare(self, expected: Side, ours: Side, vocab_size: int, shapes: Shapes, token_types: int = 0) -> F_co:
        """Query both sides and compare their answers at tokens that are not padding."""

        def pairs() -> Iterator[Pair]:
            for query in self.queries(vocab_size, token_types, shapes):
                wanted, got = expected(**query), ours(**query)
                everywhere = "attention_mask" in query and wanted.ndim == 3
                real = query["attention_mask"].astype(bool) if everywhere else ...
                yield wanted[real], got[real]

        return self.figures(pairs())


def _asked(vocab_size: int, token_types: int, shapes: Shapes) -> Iterator[Query]:
    """Yield random tokens, and random positions to answer."""
    rng = np.random.default_rng(0)
    for batch, length, positions in shapes:
        ids = rng.integers(0, vocab_size, (batch, length))
        yield {"input_ids": ids, "positions": np.stack([rng.permutation(length)[:positions] for _ in range(batch)])}


def _typed(vocab_size: int, token_types: int, shapes: Shapes) -> Iterator[Query]:
    """Yield random tokens of random types."""
    rng = np.random.default_rng(1)
    for query in _read(vocab_size, token_types, shapes):
        yield {**query, "token_type_ids": rng.integers(0, max(token_types, 1), query["input_ids"].shape)}


def _padded(vocab_size: int, token_types: int, shapes: Shapes) -> Iterator[Query]:
    """Yield random tokens, types and row lengths; the padding is random too, and must not matter."""
    rng = np.random.default_rng(0)
    for batch, length, shortest in shapes:
        ids = rng.integers(0, vocab_size, (batch, length))
        types = rng.integers(0, max(token_types, 1), (batch, length))
        lengths = rng.integers(shortest, length + 1, batch)
        lengths[0] = shortest
        mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
        ids = np.where(mask, ids, rng.integers(0, vocab_size, ids.shape))
        yield {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def _read(vocab_size: int, token_types: int, shapes: Shapes) -> Iterator[Query]:
    """Yield random tokens."""
    rng = np.random.default_rng(0)
    for batch, length, _ in shapes:
        yield {"input_ids": rng.integers(0, vocab_size, (batch, length))}


def _fitting(*wanted: tuple[int, int, int]) -> Callable[[int], Shapes]:
    """Return a function from the model's longest text to these shapes, cut to that length, without duplicates."""

    def shapes(longest: int) -> Shapes:
        fitted = ((b, min(s or longest, longest), n) for b, s, n in wanted)
        return tuple(dict.fromkeys((b, s, min(n, s)) for b, s, n in fitted))

    return shapes


# One token, a typical query, several rows, several positions; length 0 means the longest text.
ASKED = _fitting((1, 1, 1), (1, 18, 1), (3, 7, 2), (2, 128, 19), (1, 0, 2))
LOGITS = Comparison(Reference.logits, ASKED, _asked, logit_figures)
EMBEDDINGS = Comparison(Reference.embedding, ASKED, _asked, embedding_figures)
# One token, a typical query, several rows, a text longer than the local window.
READ = _fitting((1, 1, 1), (1, 18, 1), (2, 7, 1), (1, LONGEST, 1))
ATTENTION_WEIGHTS = Comparison(Reference.attention, READ, _read, attention_figures, ort.SessionOptions)
FILLED_UP = _fitting((1, 18, 18), (4, 128, 1), (1, 512, 300))
PADDED_LOGITS = Comparison(Reference.everywhere, FILLED_UP, _padded, logit_figures, ort.SessionOptions)
TEXTS = Comparison(Reference.of_texts, ASKED, _typed, task_figures)
WORDS = Comparison(Reference.logits, ASKED, _asked, task_figures)
EVERYWHERE = Comparison(Reference.of_tokens, ASKED, _typed, task_figures)
PADDED_TASK = Comparison(Reference.of_padded, FILLED_UP, _padded, task_figures, ort.SessionOptions)
