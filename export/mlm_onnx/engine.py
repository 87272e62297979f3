"""Rows of tokens → logits: one onnxruntime session a process, shared by threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from mlm_onnx.bundle import FAST_GRAPH, Bundle, BundleError

TOKENS_A_RUN = 2048
"""Rows of one length run together up to this many tokens: more gain nothing on a CPU."""
LOGITS_A_RUN = 1 << 25
"""… and up to this many logits (128 MB)."""
LARGEST_LOGIT = 1e9
PORTS = {"input_ids": "tensor(int64)", "positions": "tensor(int64)", "logits": "tensor(float)"}


@dataclass(frozen=True)
class Row:
    """What the model reads, and where it is asked."""

    ids: np.ndarray
    at: np.ndarray
    """Token positions."""


def default_threads() -> int:
    """Up to four of the cores this process may use: a query is too small to feed more."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min(4, cores))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float32, as the model's whole vocabulary sees it."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def top(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest, the largest first, the smaller index first among equals."""
    if k < len(scores):
        cut = np.partition(scores, len(scores) - k)[len(scores) - k]
        chosen = np.flatnonzero(scores >= cut)
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")][:k]


class Engine:
    """Runs the fast graph of a verified bundle.

    A forked child inherits a session without its threads: it opens one of its own at its first query.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.bundle, self.threads = bundle, threads
        self._lock = threading.Lock()
        self._session: ort.InferenceSession | None = self._open()
        _ENGINES.add(self)

    def positions_a_row(self) -> int:
        """How many positions of one row may be asked together."""
        return max(1, LOGITS_A_RUN // self.bundle.vocab_size)

    def logits(self, rows: Sequence[Row]) -> Iterator[tuple[int, np.ndarray]]:
        """(index, logits [P, V]) of each row, in any order; rows alike in length and P run together, unpadded."""
        alike: dict[tuple[int, int], list[int]] = {}
        for index, row in enumerate(rows):
            alike.setdefault((len(row.ids), len(row.at)), []).append(index)
        for (length, asked), members in alike.items():
            together = max(1, min(TOKENS_A_RUN // length, LOGITS_A_RUN // (asked * self.bundle.vocab_size)))
            if self.bundle.manifest.get("dtype") == "int8":
                together = 1  # the scales of int8 activations span a run: a text alone is answered alike in any company
            for start in range(0, len(members), together):
                chosen = members[start : start + together]
                ids = np.stack([rows[index].ids for index in chosen])
                at = np.stack([rows[index].at for index in chosen])
                yield from zip(chosen, self._run(ids, at), strict=True)

    def _run(self, ids: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Logits [B, P, V] at positions [B, P] of rows [B, S]."""
        session = self._session
        if session is None:
            with self._lock:
                session = self._session = self._session or self._open()
        path = self.bundle.file(FAST_GRAPH)
        try:
            logits = session.run(None, {"input_ids": ids, "positions": at})[0]
        except Exception as error:  # onnxruntime's errors share no base class but this
            raise BundleError(f"{path}: onnxruntime cannot run it: {_first_line(error)}") from None
        if logits.shape != (*at.shape, self.bundle.vocab_size):
            raise BundleError(f"{path} answers with shape {logits.shape}, not {(*at.shape, self.bundle.vocab_size)}")
        if not (np.abs(logits) < LARGEST_LOGIT).all():
            raise BundleError(f"{path} answers with values that are not finite")
        return logits

    def _open(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self.bundle.file(FAST_GRAPH)
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"{path}: onnxruntime cannot load it: {_first_line(error)}") from None
        found = {port.name: port.type for port in (*session.get_inputs(), *session.get_outputs())}
        if found != PORTS:
            said = ", ".join(f"{name} {kind}" for name, kind in sorted(found.items()))
            raise BundleError(f"{path} is no fill-mask graph: its inputs and outputs are {said}")
        return session

    def _forget(self) -> None:
        """In a forked child: drops the parent's session without closing it, since its threads are not there to join."""
        if self._session is not None:
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))  # never freed, in this process
        self._session, self._lock = None, threading.Lock()


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_ENGINES):
        engine._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
