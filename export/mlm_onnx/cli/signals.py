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
AGAIN = 0.05
"""Seconds after which a signal is sent again that could not be raised."""
BURST = 0.25
"""Seconds in which signals are one request: `timeout` sends two, and so do a terminal that closes and its shell."""


class Stopped(KeyboardInterrupt):
    """Somebody asked the process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def stop_of(error: BaseException) -> KeyboardInterrupt | None:
    """Return the request to stop that an error is about: libraries in C turn it into errors of their own."""
    within: BaseException | None = error
    while within is not None and not isinstance(within, KeyboardInterrupt):
        within = within.__cause__ or within.__context__
    return within


@contextmanager
def requests_to_stop() -> Iterator[None]:
    """Raise Stopped in the main thread at the first of these signals; one that was ignored before stays ignored."""
    asked: list[float] = []
    again: list[threading.Timer] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if again:
            again.clear()
        elif asked:
            if time.monotonic() - asked[0] > BURST:
                os._exit(128 + number)
            return
        asked.append(time.monotonic())
        if importing(frame):
            again.append(threading.Timer(AGAIN, _send, (number,)))
            again[0].start()
            return
        raise Stopped(number)

    ours = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    before = {number: signal.signal(number, stop) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported: one in C may turn an exception into another, or crash."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _send(number: int) -> None:
    """Send a signal to the main thread, whose sleep it ends, where there is a call for that."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)
