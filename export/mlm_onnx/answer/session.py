"""One onnxruntime session per graph and process: verified, opened at its first run, shared by threads."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.bundle.read import Bundle, verify

LARGEST_LOGIT = 1e9
INTEGERS, FLOATS = "tensor(int64)", "tensor(float)"
PROCESSOR = Path("/proc/cpuinfo")
EXACT_SUMS = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))
"""x86 features that add products of 8-bit numbers in 32 bits."""


def sums_saturate(processor: Path = PROCESSOR) -> bool:
    """Return whether this x86 saturates sums of 8-bit products at 16 bits; known on Linux only, False elsewhere."""
    try:
        with processor.open() as lines:
            flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), None)
    except OSError:
        return False
    return flags is not None and not EXACT_SUMS & set(flags)


def as_written() -> ort.SessionOptions:
    """Return options for the graphs in `fast/`, which are written as they should run: onnxruntime optimises nothing.

    That halves the start of a small session, and what onnxruntime would fuse does not run faster
    (benchmarks/results/graph-variants.json).
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return options


class Session:
    """One graph of a bundle, verified and opened at its first run; threads share it.

    A forked child inherits an onnxruntime session without its threads, so it opens its own at its first run.
    """

    def __init__(self, bundle: Bundle, graph: str, ports: Mapping[str, str], threads: int) -> None:
        self.bundle, self.graph, self.threads = bundle, graph, threads
        self._ports = ports
        self._lock = threading.Lock()
        self._session: ort.InferenceSession | None = None
        _SESSIONS.add(self)

    def opened(self) -> ort.InferenceSession:
        """Return the session, opening it first where it is not open.

        Raises:
            BundleError: the graph cannot be opened.
        """
        session = self._session
        if session is None:
            with self._lock:
                session = self._session = self._session or self._open()
        return session

    def run(self, shape: tuple[int, ...], **given: np.ndarray) -> np.ndarray:
        """Return the graph's one output, which must have that shape.

        Raises:
            BundleError: it has another shape, it is not finite, or onnxruntime fails.
        """
        session, path = self.opened(), self.bundle.file(self.graph)
        try:
            found = np.asarray(session.run(None, given)[0])
        except Exception as error:  # onnxruntime's errors share no base class but this
            raise BundleError(f"{path}: onnxruntime cannot run it: {first_line(error)}") from None
        if found.shape != shape:
            raise BundleError(f"{path} answers with shape {found.shape}, not {shape}")
        if not (np.abs(found) < LARGEST_LOGIT).all():
            raise BundleError(f"{path} answers with values that are not finite")
        return found

    def _open(self) -> ort.InferenceSession:
        verify(self.bundle, self.graph)
        options = as_written()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.bundle.manifest.get("dtype") == "int8" and sums_saturate():
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL  # one of them does it:
            options.add_session_config_entry("session.x64quantprecision", "1")  # exact kernels, though slower
        path = self.bundle.file(self.graph)
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"{path}: onnxruntime cannot load it: {first_line(error)}") from None
        found = {port.name: port.type for port in (*session.get_inputs(), *session.get_outputs())}
        if found != self._ports:
            said = ", ".join(f"{name} {kind}" for name, kind in sorted(found.items()))
            raise BundleError(f"{path} is not the graph it should be: its inputs and outputs are {said}")
        return session

    def forget(self) -> None:
        """In a forked child, drop the parent's session without closing it: its threads are not there to join."""
        if self._session is not None:
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))  # never freed, in this process
        self._session, self._lock = None, threading.Lock()


_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_SESSIONS):
        session.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
