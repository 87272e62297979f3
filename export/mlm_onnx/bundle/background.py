"""Work that a thread does meanwhile. Stdlib only, and little of it: a cold start waits for its imports."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

Result = TypeVar("Result")


class Begun(Generic[Result]):
    """Work begun in a thread of its own, which is worth it where it leaves the interpreter lock to others."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._outcome: Callable[[], Result]

        def run() -> None:
            try:
                found = work()
                self._outcome = lambda: found
            except BaseException as error:
                self._outcome = lambda error=error: _raise(error)

        self._thread = threading.Thread(target=run, name="mlm_onnx")
        self._thread.start()

    def wait(self) -> None:
        """Until it has ended, however it has."""
        self._thread.join()

    def result(self) -> Result:
        """Waits for it, and returns what it returned or raises what it raised."""
        self.wait()
        return self._outcome()


def _raise(error: BaseException) -> NoReturn:
    raise error
