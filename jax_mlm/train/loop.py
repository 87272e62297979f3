"""The training loop, and the run around it: set up → state → program → loop → record."""

from __future__ import annotations

import itertools
import math
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
from jax_mlm.parallel.compile import compile_cache, compute_dtype, mending_cache
from jax_mlm.parallel.stop import Vote
from jax_mlm.plan.flops import peak_flops
from jax_mlm.presets import SENTENCE
from jax_mlm.report.live import Progress
from jax_mlm.report.outcome import print_result, print_sentence
from jax_mlm.run.checkpoint import save, save_last, saving
from jax_mlm.train.memory import memory_advice
from jax_mlm.train.meter import Meter
from jax_mlm.train.optim import make_optimizer, make_schedule
from jax_mlm.train.pace import Pace
from jax_mlm.train.program import Program, compile_program, flops_per_step
from jax_mlm.train.record import Recorder, open_recorder, write_run_files
from jax_mlm.train.setup import Setup, set_up
from jax_mlm.train.state import init_or_restore
from jax_mlm.train.step import TrainState
from jax_mlm.train.unchanged import identity

Stopping = Callable[[], AbstractContextManager[Callable[[], bool]]]
"""A context manager of a function that returns whether somebody has asked to stop."""


class Outcome(NamedTuple):
    """Where a loop ended."""

    state: TrainState
    step: int
    stopped: bool
    """Whether it ended before the horizon because somebody asked for it."""
    result: Result | None
    """The validation after the last step, if one was due there."""


def train(config: TrainConfig, stopping: Stopping = lambda: nullcontext(lambda: False)) -> Path:
    """Train from the first step or the newest checkpoint to the end, and return the run directory.

    It installs no signal handlers and may run in any thread; `stopping` supplies the requests to stop.

    Raises:
        UserError: the options or the data are wrong, before anything is written; or the loss is not finite.
        KeyboardInterrupt: somebody asked to stop; the state is saved.
    """
    with ExitStack() as stack:
        progress = stack.enter_context(Progress())
        stack.enter_context(mending_cache(compile_cache(config)))
        setup = set_up(config)
        config = setup.config
        tx, schedule = make_optimizer(config.optim), make_schedule(config.optim)
        init_key, step_key = jax.random.split(jax.random.key(config.seed))
        hosts.on_every_host(lambda: make_folder(setup.run, "--out"))
        checkpoints = stack.enter_context(saving(setup.run, identity(setup.run, config, setup.data.tokenizer)))
        stack.enter_context(memory_advice(config, jax.device_count(), setup.run))
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
        with stopping() as asked:
            outcome = fit(program, state, pace, meter, record, checkpoints, lambda: vote(asked()), config.log_every)
        result = finish(program, outcome, pace, record, checkpoints)
    if outcome.stopped:
        again = f"python -m jax_mlm.train --resume --out {setup.run}"
        raise KeyboardInterrupt(f"saved step {outcome.step}; continue with: {again}")
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


def finish(
    program: Program, outcome: Outcome, pace: Pace, record: Recorder, checkpoints: ocp.CheckpointManager
) -> Result | None:
    """Save the last state; return the figures over all validation rows, None for a run that was stopped."""
    state, step, stopped, result = outcome
    if not stopped and result is None:
        result = validate(program, state, step, pace, record)
    save_last(checkpoints, state, pace.meta(step), None if stopped or result is None else result.loss)
    if stopped or result is None:
        return None
    result += program.validate.rest(state.params)
    record.finished(step, pace, result)
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
