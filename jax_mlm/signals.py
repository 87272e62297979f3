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
AGAIN = 0.05
"""Seconds after which a signal is sent again that could not be raised."""
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


def stop_of(error: BaseException) -> KeyboardInterrupt | None:
    """Return the request to stop that an error is about, if it is: some libraries turn it into errors of their own."""
    within: BaseException | None = error
    while within is not None and not isinstance(within, KeyboardInterrupt):
        within = within.__cause__ or within.__context__
    return within


class Requests:
    """The handler of the signals: the first one raises Stopped, or is noted while it is held; a second ends at once.

    Ending at once is safe at any moment, since whatever appears under its final name is complete.
    """

    def __init__(self) -> None:
        self.number = 0
        """The signal that was received."""
        self._first = 0.0
        self._held = False
        self._again = False
        """Whether it could not be raised where it came."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._again:
            self._again, number = False, self.number
        elif self.number:
            if time.monotonic() - self._first > BURST:
                _end(number)
            return
        else:
            self.number, self._first = number, time.monotonic()
        if importing(frame):
            self._again = not self._held
        elif not self._held:
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
        """Read the numbers of signals as they arrive, in a thread, and do what the main thread cannot do.

        Python calls a handler between two of its instructions, and compiled code may run for minutes between them: then
        the process is ended. A signal that could not be raised is sent again.
        """
        number, first, last, sent = 0, 0.0, 0.0, 0
        while True:
            if not select.select([pipe], [], [], AGAIN if number else None)[0]:
                now = time.monotonic()
                if last > first and now - last > BURST:
                    _end(number)
                if now - first > GRACE and not (self.number or self._held):
                    _end(number, f"stopped by {signal.Signals(number).name}\n")
                if self._again:
                    sent += 1
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
                continue
            received = os.read(pipe, 64)
            if 0 in received:
                return
            for each in filter(SIGNALS.__contains__, received):
                if sent:
                    sent -= 1
                    continue
                number, now = each, time.monotonic()
                first = first or now
                last = now if now - first > BURST else first

    def dropped(self, unraisable: Any) -> bool:
        """Return whether Python has to drop this exception, raised in a callback of its collector, and it is ours."""
        if isinstance(unraisable.exc_value, Stopped):
            self._again = True
        return self._again


def importing(frame: FrameType | None) -> bool:
    """Return whether a module is being imported: one in C may turn an exception into another, or crash."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


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
    sys.unraisablehook = lambda unraisable: None if requests.dropped(unraisable) else hook(unraisable)
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
