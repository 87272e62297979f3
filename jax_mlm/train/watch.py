"""What the losses of the last steps tell: whether the next one is a spike, and whether the run has diverged."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from jax_mlm.run.checkpoint import Meta

PATIENCE = 10
"""Updates skipped in a row after which a run has diverged: bad batches pass, bad parameters stay."""
WINDOW = 128
"""Steps whose median loss is what a spike is measured by."""
LEAST = 32
"""Losses that a median needs."""


class Watch:
    """The recent losses of a run, and the order of its data; each checkpoint records both."""

    def __init__(self, skip_spikes: float, meta: Meta) -> None:
        """`skip_spikes` is the multiple of the median that a loss must stay below, 0 for none."""
        self._factor, self._taken = skip_spikes, int(meta["step"])
        self._losses: deque[float | None] = deque(meta.get("losses", ()), WINDOW + 1)
        self._in_a_row = int(meta.get("skipped", 0))
        self.order = int(meta.get("order", 0))
        self.good = int(meta.get("good", meta["step"]))
        """The newest step whose state was validated and saved, after an update."""

    def took(self, loss: float, skipped: bool) -> None:
        """Take the next step's loss, and whether its update was skipped."""
        self._taken += 1
        if self._factor:
            self._losses.append(loss if math.isfinite(loss) else None)
        if not self.diverged:
            self._in_a_row = self._in_a_row + 1 if skipped else 0

    @property
    def diverged(self) -> bool:
        """Return whether so many updates in a row were skipped that the next ones will be too."""
        return self._in_a_row >= PATIENCE

    @property
    def in_doubt(self) -> bool:
        """Return whether the last update was skipped, which the parameters may be to blame for."""
        return self._in_a_row > 0

    @property
    def why(self) -> str:
        """Return what has made the run diverge."""
        spike = ", or the loss was a spike" if self._factor else ""
        return f"{PATIENCE} updates in a row were skipped, because the loss or its gradient was not finite{spike}"

    def limit(self, step: int) -> float:
        """Return what the loss of a step, counted from 0, must be below; infinity where any will do.

        Whether the step before has been read by now depends on validations and on resuming: it never counts.
        """
        recent = list(self._losses)
        before = recent[:-1] if self._taken == step else recent[-WINDOW:]
        known = [loss for loss in before if loss is not None]
        return self._factor * median(known) if len(known) >= LEAST else math.inf

    def meta(self, meta: Meta) -> Meta:
        """Return what a checkpoint records: `meta`, and what a resumed run needs to go on as this one does."""
        recorded: Meta = {**meta, "order": self.order, "good": self.good, "skipped": self._in_a_row}
        return {**recorded, "losses": list(self._losses)} if self._factor else recorded
