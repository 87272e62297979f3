"""How long a run lasts: a number of steps, or a time budget turned into one while the steps are timed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jax_mlm.run.checkpoint import Meta

EVALUATIONS = 10
"""Number of validations in a run without --eval-every."""
FIRST_GUESS = 1000
"""Horizon under a time budget until the first steps are timed; it only sets how gently the warm-up begins."""


class Pace:
    """The clock of a run: its horizon, when to validate, and the time left. It starts when it is made.

    With a budget the horizon is estimated again whenever `measure` is called, so that a machine that slows down or
    speeds up during the decay still ends on time with the learning rate at zero. Each checkpoint records it.
    """

    def __init__(
        self,
        steps: int,
        budget: float | None,
        eval_every: int,
        meta: Meta,
        final_rows: float,
        clock: Callable[[], float] = time.perf_counter,
        patience: int = 0,
        agreed: Callable[[int], int] = lambda horizon: horizon,
    ) -> None:
        """`final_rows` is the size of the last validation relative to the others; `meta` comes from a checkpoint.

        `patience` is the number of validations without a better one after which the run ends; 0 waits for the horizon.
        `agreed` turns a host's estimate of the horizon into one that all hosts have, 0 as long as there is none.
        """
        self._agreed = agreed
        self._patience, self._ranks = patience, list(meta.get("ranks", ()))
        self._clock, self._budget, self._final_rows = clock, budget, final_rows
        self._every = eval_every or max(1, -(-steps // EVALUATIONS))
        self._fixed_every = bool(eval_every)
        self._began = clock() - float(meta["elapsed"])
        self.first = self._done = int(meta["step"])
        self.horizon = steps if budget is None else int(meta["horizon"]) or FIRST_GUESS
        if self._worn_out():  # the run had ended
            self.horizon = self.first
        self._evaluations = EVALUATIONS * self._done // max(self.horizon, 1)
        self._evaluating_seconds, self._last_evaluation = 0.0, None
        self._marks: deque[tuple[int, float]] = deque([(self._done, 0.0)])

    def elapsed(self) -> float:
        """Return the seconds since the run's compilation ended, over all its resumptions."""
        return self._clock() - self._began

    def seconds_per_step(self) -> float:
        """Return the pace over about the last tenth of the run, without validations."""
        (step, seconds), (last, now) = self._marks[0], self._marks[-1]
        return (now - seconds) / max(last - step, 1)

    def measure(self, done: int) -> None:
        """Take the time after `done` steps, and move a budget's horizon to the step at which the time will be up."""
        self._done = done
        self._marks.append((done, self.elapsed() - self._evaluating_seconds))
        while len(self._marks) > 2 and self._marks[-1][1] - self._marks[1][1] > max((self._budget or 100) / 10, 1.0):
            self._marks.popleft()
        if self._budget is None:
            return
        per_step = self.seconds_per_step()
        one = self._last_evaluation if self._last_evaluation is not None else 0.0
        periodic = 0 if self._fixed_every else max(EVALUATIONS - 1 - self._evaluations, 0)
        left = self._budget - self.elapsed() - one * (periodic + self._final_rows)
        horizon = done + max(int(left / max(per_step, 1e-9)), 0)
        self.horizon = max(self._agreed(horizon) or self.horizon, done)

    def evaluation_due(self, done: int) -> bool:
        """Return whether to validate after `done` steps; the validation at the end is not counted."""
        if done >= self.horizon:
            return False
        if self._budget is None or self._fixed_every:
            return done % self._every == 0
        return EVALUATIONS * done // self.horizon > self._evaluations

    def next_evaluation(self, done: int) -> int:
        """Return the step of the next validation, as far as the horizon is known; the last one is at the end."""
        if self._budget is None or self._fixed_every:
            step = (done // self._every + 1) * self._every
        else:
            step = -(-(self._evaluations + 1) * self.horizon // EVALUATIONS)
        return min(max(step, done + 1), self.horizon)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time a validation, including the saving and drawing that go with it."""
        began = self._clock()
        yield
        self._last_evaluation = self._clock() - began
        self._evaluating_seconds += self._last_evaluation
        self._evaluations += 1

    def judge(self, done: int, rank: float) -> None:
        """Take a validation's rank, of which the lowest is the best; end the run if none is better for too long."""
        self._ranks.append(rank)
        if self._worn_out():
            self.horizon = min(done, self.horizon)

    def _worn_out(self) -> bool:
        waited = len(self._ranks) - 1 - self._ranks.index(min(self._ranks)) if self._ranks else 0
        return 0 < self._patience <= waited

    def seconds_left(self) -> float:
        if self._budget is not None:
            return max(self._budget - self.elapsed(), 0.0)
        return (self.horizon - self._done) * self.seconds_per_step()

    def meta(self, done: int) -> Meta:
        """Return what a checkpoint records of the clock."""
        meta: Meta = {"step": done, "elapsed": self.elapsed(), "horizon": self.horizon}
        return {**meta, "ranks": list(self._ranks)} if self._patience else meta
