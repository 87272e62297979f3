"""The figures of training steps, added up between two log lines."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

from jax_mlm.evals.heldout import Result, result_of
from jax_mlm.tasks.metrics import Metrics


class Meter:
    """The sums of the metrics between two log lines, without the step just dispatched."""

    def __init__(
        self,
        peak: float | None,
        took: Callable[[float, bool], None] = lambda loss, skipped: None,
    ) -> None:
        """`peak` is the operations that all devices do in a second at most, if that is known.

        `took` is told each step's loss, and whether its update was skipped, as soon as they are read.
        """
        self._peak, self._took = peak, took
        self._pending: tuple[Metrics, int, float] | None = None
        self._reset()

    def _reset(self) -> None:
        self._sums, self._tokens, self._flops, self._since = Result(0.0, 0.0, 0.0), 0, 0.0, time.perf_counter()
        self._more: Counter[str] = Counter()
        self._steps = self._skipped = 0
        self._waited = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this context as spent on waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def add(self, metrics: Metrics, tokens: int, flops: float = 0.0) -> None:
        """Take the step just dispatched, with its tokens and operations, and wait for the one before it."""
        before, self._pending = self._pending, (metrics, tokens, flops)
        if before is not None:
            self._take(before)

    def _take(self, step: tuple[Metrics, int, float]) -> None:
        sums, (more, skipped) = result_of(step[0]), jax.device_get((step[0].more, step[0].skipped))
        if skipped:  # what it measured is not of a step that was taken
            self._skipped += 1
        else:
            self._sums += sums
            self._more.update({name: float(value) for name, value in more.items()})
        self._took(sums.loss, bool(skipped))
        self._steps += 1
        self._tokens += step[1]
        self._flops += step[2]

    def settle(self) -> None:
        """Wait for the step just dispatched."""
        if self._pending is not None:
            self._take(self._pending)
            self._pending = None

    def restart(self) -> None:
        """Leave the time since the last reading, which a validation took, out of the rates."""
        self._since = time.perf_counter()

    def read(self, wait: bool) -> dict[str, float]:
        """Return figures since the last reading; `wait` includes the last step (at a validation and at the end).

        If that step is the only one, it is waited for anyway: there is nothing else to report. `skipped` is among the
        figures only where an update was skipped; loss and accuracy are not, where all were.
        """
        if wait or not self._steps:
            self.settle()
        seconds = max(time.perf_counter() - self._since, 1e-9)
        taken = {"loss": self._sums.loss, "accuracy": self._sums.accuracy} if self._skipped < self._steps else {}
        if math.isnan(taken.get("accuracy", 0.0)):  # of a regression, where nothing is right or wrong
            del taken["accuracy"]
        figures = {**taken, "tokens": self._tokens, "tokens_per_second": self._tokens / seconds}
        figures["waited"] = self._waited / seconds  # a share: the device may have worked meanwhile
        figures |= {name: value / (self._sums.count or 1.0) for name, value in self._more.items()}
        if self._peak:
            figures["mfu"] = self._flops / seconds / self._peak
        if self._skipped:
            figures["skipped"] = self._skipped
        self._reset()
        return figures
