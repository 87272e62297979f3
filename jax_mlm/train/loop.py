"""The training loop, and the run around it: set up → state → program → loop → record."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jax_mlm.config import TrainConfig
from jax_mlm.cost.flops import peak_flops
from jax_mlm.data.prefetch import prefetch
from jax_mlm.errors import UserError
from jax_mlm.evals.heldout import Result
from jax_mlm.evals.scoring import predict_each, to_host
from jax_mlm.files import make_folder
from jax_mlm.model.heads import make_forward
from jax_mlm.parallel import hosts
from jax_mlm.parallel.compile import compile_cache, compute_dtype, mending_cache
from jax_mlm.parallel.mesh import layout_of
from jax_mlm.parallel.stop import Greatest
from jax_mlm.presets import SENTENCE
from jax_mlm.report.live import Progress
from jax_mlm.report.outcome import print_result, print_sentence
from jax_mlm.run.checkpoint import Meta, save, save_last, saving
from jax_mlm.signals import Stopped
from jax_mlm.train.memory import memory_advice
from jax_mlm.train.meter import Meter
from jax_mlm.train.microbatches import in_microbatches
from jax_mlm.train.optim import Products, make_optimizer, make_schedule
from jax_mlm.train.pace import Pace
from jax_mlm.train.profile import profiled
from jax_mlm.train.program import Program, compile_program
from jax_mlm.train.record import Recorder, open_recorder, write_run_files
from jax_mlm.train.setup import Setup, claimed, resume_command, set_up
from jax_mlm.train.state import init_or_restore, roll_back
from jax_mlm.train.step import TrainState
from jax_mlm.train.unchanged import identity
from jax_mlm.train.watch import Watch

Stopping = Callable[[], AbstractContextManager[Callable[[], int]]]
"""A context manager of a function that returns the signal by which somebody has asked to stop, 0 before."""


class Outcome(NamedTuple):
    """Where a loop ended."""

    state: TrainState
    step: int
    stopped: bool
    """Whether it ended before the horizon because somebody asked for it."""
    result: Result | None
    """The validation after the last step, if it was made."""
    wrong: str
    """Why the state is of no use; empty if it is sound."""


def train(
    config: TrainConfig,
    stopping: Stopping = lambda: nullcontext(lambda: 0),
    set_up: Callable[[TrainConfig, Path], Setup] = set_up,
) -> Path:
    """Train from the first step or the newest checkpoint to the end, and return the run directory.

    It installs no signal handlers and may run in any thread; `stopping` supplies the requests to stop. `set_up` decides
    what is learned.

    Raises:
        UserError: the options or the data are wrong, before anything is written; or the run has diverged twice.
        KeyboardInterrupt: somebody asked to stop; the state is saved.
    """
    with ExitStack() as stack:
        progress = stack.enter_context(Progress())
        stack.enter_context(mending_cache(compile_cache(config)))
        config, run, still_mine = stack.enter_context(claimed(config))
        setup = in_microbatches(set_up(config, run))
        config = setup.config
        tx = make_optimizer(config.optim, setup.task.fixed, Products(compute_dtype(config), setup.mesh))
        schedule = make_schedule(config.optim)
        init_key, step_key = jax.random.split(jax.random.key(config.seed))
        hosts.on_every_host(lambda: make_folder(setup.run, "--out"))
        checkpoints = stack.enter_context(saving(setup.run, identity(setup.run, config, setup.data.tokenizer)))
        stack.enter_context(memory_advice(config, layout_of(setup.mesh).rows, setup.run))
        state, meta = init_or_restore(setup, tx, init_key, checkpoints)
        write_run_files(setup)
        progress.say("compiling")
        program = compile_program(setup, state, tx, schedule, step_key, meta["step"])
        progress.say(described(setup, state, program))
        if config.profile and hosts.is_first():
            program = stack.enter_context(profiled(program, config.profile, run, progress.say))
        record = stack.enter_context(open_recorder(setup, schedule, progress, meta["step"]))
        vote = Greatest(setup.mesh)

        def stop() -> bool:
            still_mine()
            return bool(vote(bool(asked())))

        alone = jax.process_count() == 1
        with stopping() as asked:
            go_back = partial(roll_back, setup, tx, init_key, checkpoints)
            outcome, pace, watch = fit_or_go_back(setup, program, state, meta, record, checkpoints, stop, go_back)
            result = keep_last(program, outcome, pace, watch, record, checkpoints)
            if not alone:  # one host cannot leave the others in the middle of a measurement
                result = finish(program, outcome, pace, record, result)
        if outcome.stopped or (alone and asked()):
            raise Stopped(asked() or signal.SIGTERM, what_is_saved(run, outcome.step, checkpoints.latest_step()))
        if alone:
            result = finish(program, outcome, pace, record, result)
    if setup.tuned is None:
        print_outcome(setup, outcome.state, result)
    return setup.run


def fit_or_go_back(
    setup: Setup,
    program: Program,
    state: TrainState,
    meta: Meta,
    record: Recorder,
    checkpoints: ocp.CheckpointManager,
    stop: Callable[[], bool],
    go_back: Callable[[TrainState, int], tuple[TrainState, Meta]],
) -> tuple[Outcome, Pace, Watch]:
    """Train; if the run diverges, go back to its last good checkpoint once, with the data in another order."""
    config, peak = setup.config, peak_flops(jax.devices()[0].device_kind)
    horizons = Greatest(setup.mesh)

    def firsts(horizon: int) -> int:
        return horizons(horizon if hosts.is_first() else 0)

    while True:
        last = program.validate.final_over_periodic()
        pace = Pace(config.steps, setup.budget, config.eval_every, meta, last, patience=setup.patience, agreed=firsts)
        watch = Watch(config.optim.skip_spikes, meta)
        meter = Meter(peak * jax.device_count() if peak else None, watch.took)
        outcome = fit(program, state, pace, meter, watch, record, checkpoints, stop, config.log_every)
        if not outcome.wrong:
            return outcome, pace, watch
        if watch.order:
            raise UserError(why_diverged(setup, outcome, watch.good))
        state, meta = go_back(outcome.state, watch.good)
        record.rolled_back(outcome.step, meta["step"], outcome.wrong)
        meta = {**meta, "order": watch.order + 1, "elapsed": pace.elapsed()}


def fit(
    program: Program,
    state: TrainState,
    pace: Pace,
    meter: Meter,
    watch: Watch,
    record: Recorder,
    checkpoints: ocp.CheckpointManager,
    stop: Callable[[], bool],
    log_every: int,
) -> Outcome:
    """Train to the horizon, until `stop`, or until the run has diverged: batch, step, log, validate, save."""
    done, result = pace.first, None
    with prefetch(lambda step: program.batch_at(step, watch.order), itertools.count(done)) as batches:
        while done < pace.horizon and not watch.diverged and not stop():
            with meter.waiting():
                batch, tokens, flops = next(batches)
            state, metrics = program.step(state, batch, done, pace.horizon, watch.limit(done), watch.order)
            meter.add(metrics, tokens, flops)
            done, result = done + 1, None
            logging, validating = done % log_every == 0, pace.evaluation_due(done)
            if logging or validating or done.bit_count() == 1:
                pace.measure(done)
            ending = done >= pace.horizon
            if logging or validating or ending:
                record.trained(done, pace, meter.read(wait=validating or ending))
            if (validating or ending) and not watch.diverged:
                with pace.evaluating():
                    result = validate(program, state, done, pace, record)
                    if result is None:
                        return Outcome(state, done, False, None, "the parameters or the validation loss are not finite")
                    if ending or not watch.in_doubt:
                        watch.good = done
                        pace.judge(done, result.rank(done))
                        save(checkpoints, state, watch.meta(pace.meta(done)), result.rank(done))
                    if not ending:
                        record.draw()
                meter.restart()
    meter.settle()
    return Outcome(state, done, done < pace.horizon, result, watch.why if watch.diverged else "")


def validate(program: Program, state: TrainState, step: int, pace: Pace, record: Recorder) -> Result | None:
    """Measure a periodic validation, and answer the samples; return None, unrecorded, if the state is of no use."""
    result = program.validate(state.params)
    if not (math.isfinite(result.loss) and program.finite(state)):
        return None
    record.validated(step, pace, result, program.answer(state.params))
    return result


def keep_last(
    program: Program, outcome: Outcome, pace: Pace, watch: Watch, record: Recorder, checkpoints: ocp.CheckpointManager
) -> Result | None:
    """Save the last state; return its periodic validation, None for a run that was stopped."""
    state, step, stopped, result, _ = outcome
    if stopped:
        if program.finite(state):
            save_last(checkpoints, state, watch.meta(pace.meta(step)), None)
        return None
    if result is None:  # a run that had ended already is measured once more
        result = validate(program, state, step, pace, record)
    if result is None:
        raise UserError(f"the validation loss is not finite at step {step}: look for what is odd in the rows")
    save_last(checkpoints, state, watch.meta(pace.meta(step)), result.rank(step))
    return result


def finish(program: Program, outcome: Outcome, pace: Pace, record: Recorder, result: Result | None) -> Result | None:
    """Add the validation rows that `result` leaves out, and record the figures; None for a run that was stopped."""
    if result is None:
        return None
    result += program.validate.rest(outcome.state.params)
    if not math.isfinite(result.loss):
        raise UserError(f"the loss over all validation rows is not finite at step {outcome.step}: one of them is odd")
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


def what_is_saved(run: Path, step: int, saved: int | None) -> str:
    """Return what a stopped run has saved, and how to continue it."""
    unsaved = "" if saved == step else f"step {step} is not finite, and was not saved: "
    kept = "nothing is saved" if saved is None else f"saved step {saved}"
    return f"{unsaved}{kept}; continue with: {resume_command(run)}"


def why_diverged(setup: Setup, outcome: Outcome, good: int) -> str:
    """Return what ended a run, what to try, and what is left of it."""
    precise = "" if compute_dtype(setup.config) == jnp.float32 else "--dtype float32, "
    left = f"its last good checkpoint is step {good}: --init {setup.run} starts from the best"
    return (
        f"the run diverged: {outcome.wrong} until step {outcome.step}, and before that with the data in another order; "
        f"try a lower --lr, a longer --warmup, {precise}or other --data; "
        + (left if good else f"{setup.run} holds no good checkpoint")
    )


def print_outcome(setup: Setup, state: TrainState, result: Result | None) -> None:
    """Print the held-out figures, or the founding sentence word by word."""
    data, model = setup.masked, setup.config.model
    if data.held_out and result is not None:
        print_result(data, result)
    else:
        forward = make_forward(model)
        print_sentence(predict_each(forward, to_host(state.params), data.tokenizer, data.vocabulary, SENTENCE))
