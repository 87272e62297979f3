"""The training loop, and the run around it: set up → state → program → loop → record."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from jax_mlm.config import TrainConfig
from jax_mlm.data.prefetch import prefetch
from jax_mlm.errors import UserError
from jax_mlm.evals.heldout import Result
from jax_mlm.evals.scoring import predict_each, to_host
from jax_mlm.files import make_folder
from jax_mlm.model.heads import make_forward
from jax_mlm.parallel import hosts
from jax_mlm.parallel.compile import compute_dtype
from jax_mlm.parallel.stop import Vote
from jax_mlm.plan.flops import peak_flops
from jax_mlm.presets import SENTENCE
from jax_mlm.report.live import Progress
from jax_mlm.report.outcome import print_result, print_sentence
from jax_mlm.run.checkpoint import open_checkpoints, save
from jax_mlm.signals import Stopped
from jax_mlm.train.meter import Meter
from jax_mlm.train.optim import make_optimizer, make_schedule
from jax_mlm.train.pace import Pace
from jax_mlm.train.program import Program, compile_program, flops_per_step
from jax_mlm.train.record import Recorder, open_recorder, write_run_files
from jax_mlm.train.setup import Setup, claimed, resume_command, set_up
from jax_mlm.train.state import init_or_restore
from jax_mlm.train.step import TrainState

Stopping = Callable[[], AbstractContextManager[Callable[[], int]]]
"""A context manager of a function that returns the signal by which somebody has asked to stop, 0 before."""


class Outcome(NamedTuple):
    """Where a loop ended."""

    state: TrainState
    step: int
    stopped: bool
    """Whether it ended before the horizon because somebody asked for it."""
    result: Result | None
    """The validation after the last step, if one was due there."""


def train(config: TrainConfig, stopping: Stopping = lambda: nullcontext(lambda: 0)) -> Path:
    """Train from the first step or the newest checkpoint to the end, and return the run directory.

    It installs no signal handlers and may run in any thread; `stopping` supplies the requests to stop.

    Raises:
        UserError: the options or the data are wrong, before anything is written; or the loss is not finite.
        KeyboardInterrupt: somebody asked to stop; the state is saved.
    """
    with ExitStack() as stack:
        progress = stack.enter_context(Progress())
        config, run, still_mine = stack.enter_context(claimed(config))
        setup = set_up(config, run)
        config = setup.config
        tx, schedule = make_optimizer(config.optim), make_schedule(config.optim)
        init_key, step_key = jax.random.split(jax.random.key(config.seed))
        hosts.on_every_host(lambda: make_folder(setup.run, "--out"))
        checkpoints = stack.enter_context(open_checkpoints(setup.run))
        state, meta = init_or_restore(setup, tx, init_key, checkpoints)
        write_run_files(setup)
        progress.say("compiling")
        program = compile_program(setup, state, tx, schedule, step_key, meta["step"])
        progress.say(described(setup, state, program))
        record = stack.enter_context(open_recorder(setup, schedule, progress, meta["step"]))
        pace = Pace(config.steps, setup.budget, config.eval_every, meta, program.validate.final_over_periodic())
        peak = peak_flops(jax.devices()[0].device_kind)
        meter = Meter(flops_per_step(setup), peak * jax.device_count() if peak else None)
        vote = Vote(setup.mesh)

        def stop() -> bool:
            still_mine()
            return vote(bool(asked()))

        alone = jax.process_count() == 1
        with stopping() as asked:
            outcome = fit(program, state, pace, meter, record, checkpoints, stop, config.log_every)
            result = save_last(program, outcome, pace, record, checkpoints)
            if not alone:  # one host cannot leave the others in the middle of a measurement
                result = finish(program, outcome, pace, record, result)
        if outcome.stopped or (alone and asked()):
            saved = f"saved step {outcome.step}; continue with: {resume_command(run)}"
            raise Stopped(asked() or signal.SIGTERM, saved)
        if alone:
            result = finish(program, outcome, pace, record, result)
    print_outcome(setup, outcome.state, result)
    return setup.run


def fit(
    program: Program,
    state: TrainState,
    pace: Pace,
    meter: Meter,
    record: Recorder,
    checkpoints: ocp.CheckpointManager,
    stop: Callable[[], bool],
    log_every: int,
) -> Outcome:
    """Train to the horizon, or until `stop`: batch, step, log, validate, save."""
    done, result = pace.first, None
    with prefetch(program.batch_at, itertools.count(done)) as batches:
        while done < pace.horizon and not stop():
            batch, tokens = next(batches)
            state, metrics = program.step(state, batch, pace.horizon)
            meter.add(metrics, tokens)
            done, result = done + 1, None
            logging, validating = done % log_every == 0, pace.evaluation_due(done)
            if logging or validating or done.bit_count() == 1:
                pace.measure(done)
            ending = done >= pace.horizon
            if logging or validating or ending:
                figures = meter.read(wait=validating or ending)
                record.trained(done, pace, figures)
                check_finite(figures["loss"], done)
            if validating:
                with pace.evaluating():
                    result = validate(program, state, done, pace, record)
                    save(checkpoints, state, pace.meta(done), result.loss)
                    record.draw()
                meter.restart()
    return Outcome(state, done, done < pace.horizon, result)


def validate(program: Program, state: TrainState, step: int, pace: Pace, record: Recorder) -> Result:
    """Measure a periodic validation, and answer the samples."""
    result = program.validate(state.params)
    record.validated(step, pace, result, program.answer(state.params))
    return result


def save_last(
    program: Program, outcome: Outcome, pace: Pace, record: Recorder, checkpoints: ocp.CheckpointManager
) -> Result | None:
    """Save the last state; return its periodic validation, None for a run that was stopped."""
    state, step, stopped, result = outcome
    if not stopped and result is None:
        result = validate(program, state, step, pace, record)
    if checkpoints.latest_step() != step:
        save(checkpoints, state, pace.meta(step), None if stopped or result is None else result.loss)
    checkpoints.wait_until_finished()  # the report that is drawn next lists them
    return None if stopped else result


def finish(program: Program, outcome: Outcome, pace: Pace, record: Recorder, result: Result | None) -> Result | None:
    """Add the validation rows that `result` leaves out, and record the figures; None for a run that was stopped."""
    if result is not None:
        result += program.validate.rest(outcome.state.params)
        record.finished(outcome.step, pace, result)
    return result


def described(setup: Setup, state: TrainState, program: Program) -> str:
    """Return the line printed before the first step."""
    data, length = setup.data, setup.config.corpus.length
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    return (
        f"{parameters:,} parameters, {len(data.train):,} rows of {length} tokens to train on, "
        f"{len(data.valid):,} to validate; compiled in {program.seconds:.1f} s; run directory {setup.run}"
    )


def check_finite(loss: float, step: int) -> None:
    """End a run that has diverged."""
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss} at step {step}: the run diverged, try a lower --lr")


def print_outcome(setup: Setup, state: TrainState, result: Result | None) -> None:
    """Print the held-out figures, or the founding sentence word by word."""
    data, model = setup.data, setup.config.model
    if data.held_out and result is not None:
        print_result(data, result)
    else:
        forward = make_forward(model, compute_dtype(setup.config))
        print_sentence(predict_each(forward, to_host(state.params), data.tokenizer, data.vocabulary, SENTENCE))
