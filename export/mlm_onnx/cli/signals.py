"""Requests to stop by SIGINT, SIGTERM or SIGHUP: the first one unwinds the command, a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
BURST = 0.25
"""Seconds in which signals are one request: `timeout` sends two, and so do a terminal that closes and its shell."""


class Stopped(KeyboardInterrupt):
    """Somebody asked the process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def requests_to_stop() -> Iterator[None]:
    """Raise Stopped in the main thread at the first of these signals; one that was ignored before stays ignored."""
    asked: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not asked:
            asked.append(time.monotonic())
            raise Stopped(number)
        if time.monotonic() - asked[0] > BURST:
            os._exit(128 + number)

    ours = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    before = {number: signal.signal(number, stop) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
