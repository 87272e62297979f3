"""Pretrains a masked language model; `python -m jax_mlm.train`."""

from __future__ import annotations

import itertools
import math
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_mlm.config import TrainConfig
from jax_mlm.data.batches import batch_at, batch_of
from jax_mlm.data.dataset import open_dataset
from jax_mlm.data.prefetch import prefetch
from jax_mlm.errors import UserError
from jax_mlm.evals.heldout import EVAL_MASK, EVAL_SEED, Result, evaluate_rows, make_eval_step, spread
from jax_mlm.evals.samples import choose_samples, compile_samples, to_json
from jax_mlm.evals.scoring import predict_each, to_host
from jax_mlm.files import make_folder, write_atomically
from jax_mlm.model.encoder import init_params, make_forward
from jax_mlm.parallel import hosts
from jax_mlm.parallel import mesh as sharding
from jax_mlm.parallel.compile import compile_cache, compile_step, compute_dtype
from jax_mlm.parallel.devices import describe_devices, device_facts, warn_of_unused_accelerator
from jax_mlm.parallel.stop import Vote, stop_request
from jax_mlm.plan.flops import peak_flops, train_flops
from jax_mlm.presets import SENTENCE
from jax_mlm.report.live import Progress
from jax_mlm.report.outcome import print_result, print_sentence
from jax_mlm.report.page import write_report
from jax_mlm.report.plots import write_plots
from jax_mlm.run.checkpoint import open_checkpoints, restore, save
from jax_mlm.run.directory import TOKENIZER_FILE, choose_directory, write_run
from jax_mlm.run.log import MetricsLog
from jax_mlm.run.trackers import check_tracker, open_tracker
from jax_mlm.tasks.distil import make_objective
from jax_mlm.tasks.masking import rate_at, slots
from jax_mlm.train.meter import Meter
from jax_mlm.train.optim import make_optimizer, make_schedule
from jax_mlm.train.pace import Pace, parse_budget
from jax_mlm.train.start import origin_of
from jax_mlm.train.step import TrainState, init_state, make_train_step
from jax_mlm.train.teacher import resolve_start


def train(config: TrainConfig, progress: Progress) -> Path:
    """Runs the whole of it and returns the run directory.

    Raises:
        UserError: a mistake in the options or the data; nothing has been written to the run directory then.
        KeyboardInterrupt: asked to stop; the state is saved.
    """
    # ---- where, on what, from what ----------------------------------------------------------------------------------
    run = hosts.together(lambda: choose_directory(config))
    hosts.agree("options", f"{run} {config}")
    check_tracker(config.track)
    budget = parse_budget(config.budget) if config.budget else None
    if budget is None and config.steps < 1:
        raise UserError(f"--steps must be at least 1, not {config.steps}")
    mesh = sharding.make_mesh(config.batch, config.accumulate)
    print(describe_devices(), file=sys.stderr)
    warn_of_unused_accelerator()
    jax.config.update("jax_compilation_cache_dir", str(compile_cache(config)))
    config, start, teacher = hosts.together(lambda: resolve_start(config, run))
    data = hosts.together(lambda: open_dataset(config, run, given=start.tokenizer if start else None))
    hosts.agree("text", str(data.fingerprints))
    config, length, vocabulary = data.config, data.config.corpus.length, data.vocabulary

    # ---- functions --------------------------------------------------------------------------------------------------
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    forward = make_forward(config.model, compute_dtype(config))
    tx, schedule = make_optimizer(config.optim), make_schedule(config.optim)
    objective = make_objective(config.distil, config.model, teacher.model, compute_dtype(config)) if teacher else None
    train_step = make_train_step(
        forward, tx, schedule, config.mask, vocabulary, length, step_key, config.accumulate, objective
    )
    eval_step = make_eval_step(forward, EVAL_MASK, vocabulary, length, jax.random.key(EVAL_SEED))
    place, shard = sharding.make_placer(mesh), (jax.process_index(), jax.process_count())
    everywhere, copy = sharding.replicated(mesh), sharding.make_copier(mesh)

    # ---- state ------------------------------------------------------------------------------------------------------
    def first_state(key: Any, params: Any) -> TrainState:
        return init_state(init_params(config.model, key) if params is None else params, tx)

    state = jax.jit(first_state, out_shardings=everywhere)(init_key, start.params if start else None)
    hosts.together(lambda: make_folder(run, "--out"))
    manager = open_checkpoints(run)
    meta: dict[str, Any] = {"step": 0, "elapsed": 0.0, "horizon": 0}
    if config.resume:
        restored = restore(manager, state)
        if restored is None and (config.init or teacher):
            raise UserError(f"{run} has lost its checkpoints, and with them the weights it began with: begin a new run")
        state, meta = restored or (state, meta)
    elif hosts.is_first():
        write_atomically(run / TOKENIZER_FILE, data.tokenizer.to_str(pretty=True))
    if start is not None:  # --resume never needs the weights that this began with
        save(manager, state, meta, None)
        manager.wait_until_finished()
    if hosts.is_first():
        taught = {"teacher": teacher.origin} if teacher else {}
        facts = {"files": list(config.data), **data.fingerprints, **origin_of(run, start), **taught}
        write_run(run, config, device_facts(), facts)
    first = done = int(meta["step"])

    # ---- compilation, before the clock starts -----------------------------------------------------------------------
    def make_batch(step: int) -> tuple[Any, int, float]:
        batch = batch_at(data.train, step, config.seed, config.batch, shard)
        tokens = int((batch.segments > 0).sum()) * shard[1]
        work = (tokens, tokens * length, config.batch * slots(config.mask, length))
        flops = train_flops(config.model, *work) + (train_flops(teacher.model, *work) / 3 if teacher else 0.0)
        return place(batch), tokens, flops

    fixed = jax.tree.map(copy, (teacher.params,)) if teacher else ()

    eval_batch = config.batch // config.accumulate
    example = place(batch_of(data.valid, np.arange(eval_batch // shard[1])))
    progress.say("compiling")
    began = time.perf_counter()
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=everywhere)
    compiled_step = compile_step(jitted.lower(state, make_batch(first)[0], copy(np.int32(1)), *fixed))
    compiled_eval = compile_step(jax.jit(eval_step, out_shardings=everywhere).lower(state.params, example))
    samples = choose_samples(data.valid, data.tokenizer)
    answer = compile_samples(forward, state.params, samples, data.valid, data.tokenizer, everywhere)
    compile_seconds = time.perf_counter() - began

    def validate(indices: np.ndarray) -> Result:
        return evaluate_rows(compiled_eval, state.params, data.valid, indices, eval_batch, place, shard)

    # ---- the loop ---------------------------------------------------------------------------------------------------
    log: Any = hosts.Nobody()
    if hosts.is_first():
        log = MetricsLog(run, first if config.resume else None, open_tracker(config.track, run, config))
    progress.say(
        f"{sum(x.size for x in jax.tree.leaves(state.params)):,} parameters, {len(data.train):,} rows of {length} "
        f"tokens to train on, {len(data.valid):,} to validate; compiled in {compile_seconds:.1f} s; run directory {run}"
    )
    subset, others = spread(len(data.valid), config.eval_rows)
    peak = peak_flops(jax.devices()[0].device_kind)

    def evaluate() -> Result:
        result, answers = validate(subset), answer(state.params)
        log.write("valid", done, {"loss": result.loss, "accuracy": result.accuracy})
        log.write_samples(done, to_json(answers))
        progress.evaluated(done, pace.horizon, result.loss, result.accuracy, answers)
        return result

    stop, meter = Vote(mesh), Meter(peak * jax.device_count() if peak else None)
    pace = Pace(config.steps, budget, config.eval_every, meta, len(data.valid) / len(subset))
    measured = -1
    with stop_request() as stop_asked, prefetch(make_batch, itertools.count(first)) as batches:
        while done < pace.horizon and not stop(stop_asked()):
            batch, tokens, flops = next(batches)
            state, metrics = compiled_step(state, batch, copy(np.int32(pace.horizon)), *fixed)
            meter.add(metrics, tokens, flops)
            done += 1
            evaluating = pace.evaluation_due(done)
            if done % config.log_every == 0 or done.bit_count() == 1 or evaluating:
                pace.measure(done)
            if done % config.log_every == 0 or evaluating or done >= pace.horizon:
                figures = meter.read(wait=evaluating or done >= pace.horizon)
                log.write("train", done, {**figures, **scheduled(config, schedule, done, pace)})
                progress.update(done, pace.horizon, figures, pace.seconds_left(), pace.next_evaluation(done))
                check_finite(figures["loss"], done, run)
            if evaluating:
                with pace.evaluating():
                    result, measured = evaluate(), done
                    save(manager, state, pace.meta(done), result.loss)
                    draw(run)
                meter.restart()
        stopped = done < pace.horizon

    # ---- the end ----------------------------------------------------------------------------------------------------
    if stopped:
        if manager.latest_step() != done:
            save(manager, state, pace.meta(done), None)
    else:
        if measured != done:  # a budget may end at a validation
            result = evaluate()
        if manager.latest_step() != done:
            save(manager, state, pace.meta(done), result.loss)
        result += validate(others)
        log.write("final", done, {"loss": result.loss, "accuracy": result.accuracy, "seconds": pace.elapsed()})
    manager.wait_until_finished()
    manager.close()
    log.close()
    progress.close()
    draw(run)
    if stopped:
        raise KeyboardInterrupt(f"saved step {done}; continue with: python -m jax_mlm.train --resume --out {run}")
    if data.held_out:
        print_result(data, result)
    else:
        print_sentence(predict_each(forward, to_host(state.params), data.tokenizer, vocabulary, SENTENCE))
    return run


def draw(run: Path) -> None:
    """Writes the plots and the report page, on one host."""
    if hosts.is_first():
        write_plots(run)
        write_report(run)


def scheduled(config: TrainConfig, schedule: Any, done: int, pace: Pace) -> dict[str, float]:
    """The scheduled quantities of the step that was done last."""
    lr = config.optim.lr * float(schedule(done - 1, pace.horizon))
    mask_rate = float(rate_at(config.mask, done - 1, pace.horizon))
    return {"lr": lr, "mask_rate": mask_rate, "seconds": pace.elapsed()}


def check_finite(loss: float, step: int, run: Path) -> None:
    """Ends a run that has diverged."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of {run} is {loss} at step {step}: it diverged, try a lower --lr")
