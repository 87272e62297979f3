"""What a run shows and writes while it trains: log, tracker, panel and drawings as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType

from jax_mlm.config import Json
from jax_mlm.data.dataset import Read
from jax_mlm.data.labelled import Labelled
from jax_mlm.evals.heldout import Result
from jax_mlm.evals.samples import Answer, to_json
from jax_mlm.files import write_atomically
from jax_mlm.parallel import hosts
from jax_mlm.parallel.devices import describe_machine
from jax_mlm.report.figures import Drawer
from jax_mlm.report.live import Progress
from jax_mlm.run.directory import RUN_FILE, TOKENIZER_FILE, read_run_file, write_run
from jax_mlm.run.log import ROLLBACK, MetricsLog
from jax_mlm.run.trackers import open_tracker
from jax_mlm.train.optim import Schedule
from jax_mlm.train.pace import Pace
from jax_mlm.train.setup import Setup
from jax_mlm.train.start import origin_of
from jax_mlm.train.survey import doubt_of_readings


def write_run_files(setup: Setup) -> None:
    """Write what the run is made of to its directory, on one host: `run.json`, and a new run's tokenizer."""
    if not hosts.is_first():
        return
    if not setup.config.resume:
        write_atomically(setup.run / TOKENIZER_FILE, setup.data.tokenizer.to_str(pretty=True))
    teacher = {"teacher": setup.teacher.origin} if setup.teacher else {}
    origin = {"files": list(setup.config.data), **setup.data.fingerprints, **origin_of(setup.run, setup.start)}
    if isinstance(setup.data, Labelled):
        origin |= {"text": setup.survey.figures}
    elif setup.config.data:
        origin |= {"sources": setup.data.sources}
        origin |= {"text": setup.survey.figures, **tokenizer_of(setup.run, setup.data.read)}
    attention = {"attention": setup.attention} if setup.attention else {}
    write_run(setup.run, setup.config, {**describe_machine(), **attention}, {**origin, **teacher}, setup.tuned)


def tokenizer_of(run: Path, read: Read) -> Json:
    """Return what `run.json` records of a tokenizer that was trained for the run; a resumed run keeps it."""
    if read.tokenizer_kind:
        return {"tokenizer": {"kind": read.tokenizer_kind, "reason": read.tokenizer_reason}}
    before = read_run_file(run).get("data", {}) if (run / RUN_FILE).is_file() else {}
    return {"tokenizer": before["tokenizer"]} if "tokenizer" in before else {}


class Recorder(AbstractContextManager["Recorder"]):
    """The record of a run as it trains; closing it draws the final state."""

    def __init__(
        self,
        log: MetricsLog,
        progress: Progress,
        drawer: Drawer,
        scheduled: Callable[[int, int], dict[str, float]],
        doubt: Callable[[int], str],
    ) -> None:
        """`scheduled(step, horizon)` returns the scheduled values by their names in the log.

        `doubt(horizon)` returns what to warn of once, when a twentieth of the run has shown how long it will be.
        """
        self._log, self._progress, self._drawer, self._scheduled = log, progress, drawer, scheduled
        self._doubt, self._warnings = doubt, 0
        self._closing = ExitStack()
        self._closing.callback(drawer.close)
        self._closing.callback(progress.close)
        self._closing.callback(log.close)

    def trained(self, step: int, pace: Pace, figures: dict[str, float]) -> None:
        """Record the figures of the steps since the last line."""
        schedules = {**self._scheduled(step - 1, pace.horizon), "seconds": pace.elapsed()}
        self._log.write("train", step, {**figures, **schedules})
        self._progress.update(step, pace.horizon, figures, pace.seconds_left(), pace.next_evaluation(step))
        if step >= pace.horizon / 20:
            if doubt := self._doubt(pace.horizon):
                self._progress.say(f"warning: {doubt}")
            self._doubt = lambda horizon: ""
        if "skipped" in figures:
            self._warnings += 1
            if self._warnings.bit_count() == 1:  # the first, then ever more rarely: metrics.jsonl counts them all
                count = f"{figures['skipped']:.0f} of the last updates skipped"
                self._progress.say(f"warning: step {step}: {count} (loss or gradient not finite, or a spike)")

    def rolled_back(self, step: int, to: int, why: str) -> None:
        """Drop what was recorded after step `to`, and record that the run goes on from there."""
        self._log.roll_back(to)
        self._log.write(ROLLBACK, to, {"from": step})
        self._progress.say(f"warning: step {step}: {why}: back to step {to}, with the data and masks in another order")

    def validated(self, step: int, pace: Pace, result: Result, answers: Sequence[Answer]) -> None:
        """Record a validation and the answers to the samples."""
        self._log.write("valid", step, result.figures())
        if answers:
            self._log.write_samples(step, to_json(answers))
        self._progress.evaluated(step, pace.horizon, result.figures(), answers)

    def draw(self) -> None:
        """Draw in the background, at most once a minute."""
        self._drawer.maybe()

    def finished(self, step: int, pace: Pace, result: Result) -> None:
        """Record the figures over all validation rows."""
        self._log.write("final", step, {**result.figures(), "seconds": pace.elapsed()})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()


class SilentRecorder(Recorder):
    """The recorder of hosts that do not write."""

    def __init__(self) -> None:
        self._closing = ExitStack()

    def trained(self, step: int, pace: Pace, figures: dict[str, float]) -> None: ...

    def rolled_back(self, step: int, to: int, why: str) -> None: ...

    def validated(self, step: int, pace: Pace, result: Result, answers: Sequence[Answer]) -> None: ...

    def draw(self) -> None: ...

    def finished(self, step: int, pace: Pace, result: Result) -> None: ...


def open_recorder(setup: Setup, schedule: Schedule, progress: Progress, first: int) -> Recorder:
    """Return the recorder of this host; a resumed run's log first drops what comes after step `first`."""
    if not hosts.is_first():
        return SilentRecorder()
    config = setup.config

    def scheduled(step: int, horizon: int) -> dict[str, float]:
        return {"lr": config.optim.lr * float(schedule(step, horizon)), **setup.task.scheduled(step, horizon)}

    def doubt(horizon: int) -> str:
        asked = config.budget and config.data
        return doubt_of_readings(horizon * config.batch / len(setup.data.train)) if asked else ""

    tracker = open_tracker(config.track, setup.run, config)
    log = MetricsLog(setup.run, first if config.resume else None, tracker)
    return Recorder(log, progress, Drawer(setup.run), scheduled, doubt)
