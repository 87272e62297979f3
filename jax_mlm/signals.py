"""Requests to stop by SIGINT, SIGTERM or SIGHUP: an exception, or a note where work has to be finished first."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from types import FrameType
from typing import IO, Any, NoReturn, cast

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE = 3.0
"""Seconds that compiled code may keep a request from being answered."""
BURST = 0.25
"""Seconds in which signals are one request: `timeout` sends two, and so do a terminal that closes and its shell."""


class Stopped(KeyboardInterrupt):
    """Somebody asked the process to stop; the text tells what was saved, and where."""

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(said)
        self.number = number


def number_of(stop: KeyboardInterrupt) -> int:
    """Return the signal of a request to stop; it may have been raised by another package's handler, or by Python's."""
    return getattr(stop, "number", signal.SIGINT)


class Requests:
    """The handler of the signals: the first one raises Stopped, or is noted while it is held; a second ends at once.

    Ending at once is safe at any moment, since whatever appears under its final name is complete.
    """

    def __init__(self) -> None:
        self.number = 0
        """The signal that was received."""
        self._first = 0.0
        self._held = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if time.monotonic() - self._first > BURST:
                _end(number)
            return
        self.number, self._first = number, time.monotonic()
        if not self._held:
            raise Stopped(number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Only note the first request in this context, and go on although nobody may read the output any more.

        (Ctrl-C ends `tee`, too, and SIGHUP comes when the terminal is gone.)
        """
        self._held = True
        try:
            with ExitStack() as stack:
                stack.enter_context(redirect_stdout(cast(IO[str], _Forgiving(sys.stdout, self))))
                stack.enter_context(redirect_stderr(cast(IO[str], _Forgiving(sys.stderr, self))))
                yield
        finally:
            self._held = False

    def watch(self, pipe: int) -> None:
        """Read the numbers of signals as they arrive, in a thread, and end the process if its main thread cannot.

        Python calls a handler between two of its instructions, and compiled code may run for minutes between them.
        """
        number, first, last = 0, 0.0, 0.0
        while True:
            waiting = None if not number else GRACE if last == first else GRACE / 10
            if not select.select([pipe], [], [], waiting)[0]:
                if last > first:
                    _end(number)
                if not (self.number or self._held):
                    _end(number, f"stopped by {signal.Signals(number).name}\n")
                number = 0
                continue
            received = os.read(pipe, 64)
            if 0 in received:
                return
            for each in filter(SIGNALS.__contains__, received):
                number, now = each, time.monotonic()
                first = first or now
                last = now if now - first > BURST else first

    def again(self, unraisable: Any) -> bool:
        """Ask again if the exception was raised where Python has to drop it, such as in a callback of its collector."""
        if not isinstance(unraisable.exc_value, Stopped):
            return False
        number, self.number = self.number, 0
        threading.Timer(BURST / 4, os.kill, (os.getpid(), number)).start()
        return True


class _Forgiving:
    """A text stream that discards what cannot be written once somebody has asked to stop."""

    def __init__(self, stream: IO[str], requests: Requests) -> None:
        self._stream, self._requests = stream, requests

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            if not self._requests.number:
                raise
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            if not self._requests.number:
                raise

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _end(number: int, line: str = "") -> NoReturn:
    """End the process without unwinding; show the cursor again, which a live panel hides."""
    with suppress(OSError):
        os.write(2, (("\x1b[?25h" if os.isatty(2) else "") + line).encode())
    os._exit(128 + number)


@contextmanager
def requests_to_stop() -> Iterator[Requests]:
    """Handle the signals in this context; one that was ignored before stays ignored.

    Only the main thread can: in another one nothing is handled.
    """
    requests = Requests()
    ours = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    if not ours:
        yield requests
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=requests.watch, args=(reading,), name="signals", daemon=True)
    watcher.start()
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None if requests.again(unraisable) else hook(unraisable)
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, requests) for number in ours}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        sys.unraisablehook = hook
        os.write(writing, b"\0")
        watcher.join()
        os.close(reading)
        os.close(writing)


def current_requests() -> Requests | None:
    """Return the handler of this process, None if it has none or this is not the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return next((found for number in SIGNALS if isinstance(found := signal.getsignal(number), Requests)), None)
