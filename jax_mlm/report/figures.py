"""`plots/*.svg` and `report.html`, drawn from the run directory alone, while the run trains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from jax_mlm.errors import described, warn
from jax_mlm.files import write_atomically
from jax_mlm.report.curves import curves
from jax_mlm.report.page import REPORT_FILE, report
from jax_mlm.report.picture import picture
from jax_mlm.report.summary import checkpoints, summarise

PLOTS_FOLDER = "plots"
PLOTS = ("loss", "accuracy", "learning_rate")
"""The curves that also get files of their own."""
SHARE = 0.01
"""Largest part of the time that drawing may take: a drawing reads the whole log, which grows with the run."""


def draw(run: Path) -> None:
    """Redraw the plots and the report page from what the run directory holds."""
    summary = summarise(run)
    charts = curves(summary)
    (run / PLOTS_FOLDER).mkdir(exist_ok=True)
    for name in PLOTS:
        write_atomically(run / PLOTS_FOLDER / f"{name}.svg", picture(summary.name, [charts[name]]))
    write_atomically(run / REPORT_FILE, report(summary, checkpoints(summary), charts.values()))


class Drawer:
    """The background drawing of a run while it trains; closing it draws the final state.

    A drawing that fails costs a warning on stderr, and one only until a drawing succeeds, never the training.
    """

    def __init__(self, run: Path, every: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        """`every` is the minimum number of seconds between the starts of two drawings."""
        self._run, self._every, self._clock = run, every, clock
        self._began: float | None = None
        self._thread: threading.Thread | None = None
        self._failed, self._seconds = False, 0.0

    def due(self) -> bool:
        """Return whether it is time for a drawing; it never is while one is under way."""
        if self._thread is not None and self._thread.is_alive():
            return False
        return self._began is None or self._clock() - self._began >= max(self._every, self._seconds / SHARE)

    def maybe(self) -> None:
        """Begin a drawing in the background if one is due."""
        if self.due():
            self._began = self._clock()
            self._thread = threading.Thread(target=self._draw, name="drawer", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait for the drawing under way, then draw the final state before returning."""
        if self._thread is not None:
            self._thread.join()
        self._draw()

    def __enter__(self) -> Drawer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _draw(self) -> None:
        began = time.thread_time()
        try:
            draw(self._run)
            self._failed = False
        except Exception as error:
            if not self._failed:  # a full disk would say so every minute, for days
                reason = described(error) if isinstance(error, OSError) else " ".join(str(error).split())
                warn(f"{self._run} was not drawn ({type(error).__name__}: {reason or 'no message'})")
            self._failed = True
        self._seconds = time.thread_time() - began
