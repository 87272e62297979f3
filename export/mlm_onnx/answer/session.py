"""One onnxruntime session a graph and process, verified, opened at its first run, shared by threads."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.bundle.read import Bundle, verify

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


LARGEST_LOGIT = 1e9


INTEGERS, FLOATS = "tensor(int64)", "tensor(float)"


PROCESSOR = Path("/proc/cpuinfo")


EXACT_SUMS = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))
"""Of x86: what adds products of 8-bit numbers in 32 bits."""


def sums_saturate(processor: Path = PROCESSOR) -> bool:
    """Whether this is an x86 that cuts off sums of 8-bit products at 16 bits; on Linux, elsewhere it is not known."""
    try:
        with processor.open() as lines:
            flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), None)
    except OSError:
        return False
    return flags is not None and not EXACT_SUMS & set(flags)


def as_written() -> ort.SessionOptions:
    """Options for the graphs in `fast/`: they are written as they should run, so nothing is looked for in them.

    That halves the start of a small session, and what onnxruntime would fuse runs no faster
    (benchmarks/results/graph-variants.json).
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return options


class Session:
    """One graph of a bundle, verified and opened at its first run; threads share it.

    A forked child inherits an onnxruntime session without its threads: it opens one of its own at its first run.
    """

    def __init__(self, bundle: Bundle, graph: str, ports: Mapping[str, str], threads: int) -> None:
        self.bundle, self.graph, self.threads = bundle, graph, threads
        self._ports = ports
        self._lock = threading.Lock()
        self._session: ort.InferenceSession | None = None
        _SESSIONS.add(self)

    def opened(self) -> ort.InferenceSession:
        session = self._session
        if session is None:
            with self._lock:
                session = self._session = self._session or self._open()
        return session

    def run(self, shape: tuple[int, ...], **given: np.ndarray) -> np.ndarray:
        """The graph's one output, which must have that shape.

        Raises:
            BundleError: when it has not, when it is not finite, or when onnxruntime fails.
        """
        session, path = self.opened(), self.bundle.file(self.graph)
        try:
            found = session.run(None, given)[0]
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
        """In a forked child: drops the parent's session without closing it, since its threads are not there to join."""
        if self._session is not None:
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))  # never freed, in this process
        self._session, self._lock = None, threading.Lock()


_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_SESSIONS):
        session.forget()


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
