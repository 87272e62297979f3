"""The drawer: off the caller's thread, at most once a minute, never two at a time, and never silent about a failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jax_mlm.report import figures
from jax_mlm.report.figures import Drawer

RUN = Path("runs/mine")
LONG = 10.0
"""Seconds until a test that waits for another thread gives up."""


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Drawings:
    """Stands in for `draw`: notes who draws, and ends when it is allowed to."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.most = self.under_way = 0
        self.begun, self.allowed = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, run: Path) -> None:
        assert run == RUN
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.threads.append(threading.current_thread())
        self.begun.release()
        assert self.allowed.acquire(timeout=LONG)
        self.under_way -= 1

    def finish(self) -> None:
        """Wait until the latest drawing has begun, and let it end."""
        assert self.begun.acquire(timeout=LONG)
        self.allowed.release()
        self.threads[-1].join(LONG)


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Drawings]:
    made = Drawings()
    monkeypatch.setattr(figures, "draw", made)
    yield made
    made.allowed.release(100)


def test_the_first_drawing_comes_at_once_and_the_next_a_minute_after_it_began(drawings):
    clock = Clock()
    drawer = Drawer(RUN, clock=clock)
    assert drawer.due()
    drawer.maybe()
    drawings.finish()
    for later, again in ((0.0, False), (59.5, False), (0.5, True), (59.5, False), (3600.0, True)):
        clock.now += later
        assert drawer.due() == again, later
        drawer.maybe()
        if again:
            drawings.finish()
    assert len(drawings.threads) == 3
    assert threading.current_thread() not in drawings.threads


def test_drawing_a_long_log_takes_a_hundredth_of_the_time(monkeypatch):
    clock, processor = Clock(), Clock()
    monkeypatch.setattr(figures, "draw", lambda run: setattr(processor, "now", processor.now + 3.0))
    monkeypatch.setattr(figures.time, "thread_time", processor)
    with Drawer(RUN, clock=clock) as drawer:
        drawer.maybe()
        assert drawer._thread is not None
        drawer._thread.join()
        clock.now += 299
        assert not drawer.due()
        clock.now += 1
        assert drawer.due()


def test_a_slow_drawing_is_not_joined_by_another_and_holds_nobody_up(drawings):
    clock = Clock()
    drawer = Drawer(RUN, every=1.0, clock=clock)
    for _ in range(5):
        drawer.maybe()  # returns although the drawing waits for `finish`
        clock.now += 10
        assert not drawer.due()
    drawings.finish()
    assert (len(drawings.threads), drawings.most) == (1, 1)
    assert drawer.due()


def test_the_end_waits_for_the_drawing_under_way_and_draws_once_more_itself(drawings):
    with Drawer(RUN, clock=Clock()) as drawer:
        drawer.maybe()
        assert drawings.begun.acquire(timeout=LONG)
        drawings.allowed.release(2)
    assert (len(drawings.threads), drawings.most) == (2, 1)
    assert not drawings.threads[0].is_alive()
    assert drawings.threads[1] is threading.current_thread()


def test_a_failure_is_one_line_on_stderr_and_no_more(monkeypatch, capsys):
    def fail(run: Path) -> None:
        raise ValueError("first\n  second")

    monkeypatch.setattr(figures, "draw", fail)
    drawer = Drawer(RUN, clock=Clock())
    drawer.maybe()
    drawer.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"warning: {RUN} was not drawn (ValueError: first second)\n"
