"""Run work in the background. Few imports, all from the standard library: a cold start waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

Result = TypeVar("Result")


class BackgroundTask(Generic[Result]):
    """A function running in its own thread. It pays off only if the work releases the GIL."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._outcome: Callable[[], Result]

        def run() -> None:
            try:
                outcome = work()
                self._outcome = lambda: outcome
            except BaseException as error:
                self._outcome = lambda error=error: _raise(error)

        self._thread = threading.Thread(target=run, name="mlm_onnx")
        self._thread.start()

    def wait(self) -> None:
        """Block until the function has returned or raised."""
        self._thread.join()

    def result(self) -> Result:
        """Wait for the function, then return its result or raise its error."""
        self.wait()
        return self._outcome()


def _raise(error: BaseException) -> NoReturn:
    raise error
