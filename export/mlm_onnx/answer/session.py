"""One onnxruntime session per graph and process: verified, opened on its first run, shared by threads."""

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
"""x86 features that accumulate products of 8-bit numbers in 32 bits."""


def sums_saturate(processor: Path = PROCESSOR) -> bool:
    """Return whether this x86 processor saturates sums of 8-bit products at 16 bits; always False except on Linux."""
    try:
        with processor.open(encoding="utf-8", errors="replace") as lines:
            flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), None)
    except OSError:
        return False
    return flags is not None and not EXACT_SUMS & set(flags)


def as_written() -> ort.SessionOptions:
    """Return options for the graphs in `fast/`, which already have the form to run: onnxruntime optimises nothing.

    That halves the time to open a small session, and what onnxruntime would fuse does not run faster
    (benchmarks/results/graph-variants.json).
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return options


class Session:
    """One graph of a bundle, verified and opened on its first run; threads share it.

    A forked child inherits an onnxruntime session without its threads, so it opens its own on its first run.
    """

    def __init__(self, bundle: Bundle, graph: str, ports: Mapping[str, str], threads: int) -> None:
        self.bundle, self.graph, self.threads = bundle, graph, threads
        self._ports = ports
        self._lock = threading.Lock()
        self._session: ort.InferenceSession | None = None
        _SESSIONS.add(self)

    def opened(self) -> ort.InferenceSession:
        """Return the session, opening it first if necessary.

        Raises:
            BundleError: the graph cannot be opened.
        """
        session = self._session
        if session is None:
            with self._lock:
                session = self._session = self._session or self._open()
        return session

    def run(self, shape: tuple[int, ...], **given: np.ndarray) -> np.ndarray:
        """Return the graph's only output, which must have this shape.

        Raises:
            BundleError: it has a different shape or values that are not finite, or onnxruntime fails.
        """
        session, path = self.opened(), self.bundle.file(self.graph)
        try:
            output = np.asarray(session.run(None, given)[0])
        except Exception as error:  # onnxruntime's errors have no narrower base class
            raise BundleError(f"{path}: onnxruntime cannot run it: {first_line(error)}") from None
        if output.shape != shape:
            raise BundleError(f"{path} returns shape {output.shape}, not {shape}")
        if not (np.abs(output) < LARGEST_LOGIT).all():
            raise BundleError(f"{path} returns values that are not finite")
        return output

    def _open(self) -> ort.InferenceSession:
        verify(self.bundle, self.graph)
        options = as_written()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.bundle.manifest.get("dtype") == "int8" and sums_saturate():
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL  # applies the next option:
            options.add_session_config_entry("session.x64quantprecision", "1")  # exact but slower kernels
        path = self.bundle.file(self.graph)
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"{path}: onnxruntime cannot load it: {first_line(error)}") from None
        ports = {port.name: port.type for port in (*session.get_inputs(), *session.get_outputs())}
        if ports != self._ports:
            listed = ", ".join(f"{name} {kind}" for name, kind in sorted(ports.items()))
            raise BundleError(f"{path} is not the graph it should be: its inputs and outputs are {listed}")
        return session

    def forget(self) -> None:
        """Drop the parent's session in a forked child, unclosed: the threads that closing would join are not there."""
        if self._session is not None:
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))  # never freed in this process
        self._session, self._lock = None, threading.Lock()


_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_SESSIONS):
        session.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
