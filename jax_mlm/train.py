"""Pretrains a masked language model; `python -m jax_mlm.train`."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_mlm import sharding
from jax_mlm.checkpoint import open_checkpoints, restore, save
from jax_mlm.config import PRESETS, SENTENCE, TrainConfig
from jax_mlm.console import Progress, nearest, run_command, stop_request
from jax_mlm.data import batch_at, batch_of, prefetch, token_counts
from jax_mlm.dataset import Dataset, cache_folder, open_dataset
from jax_mlm.errors import UserError
from jax_mlm.evaluate import EVAL_MASK, EVAL_SEED, Result, evaluate_rows
from jax_mlm.flops import peak_flops, train_flops
from jax_mlm.horizon import Pace, parse_budget
from jax_mlm.loss import unigram_baseline
from jax_mlm.masking import rate_at, slots
from jax_mlm.model import init_params, make_forward
from jax_mlm.optim import make_optimizer, make_schedule
from jax_mlm.predictions import predict_each, print_predictions, to_host
from jax_mlm.report import write_plots
from jax_mlm.run import RUN_FILE, TOKENIZER_FILE, MetricsLog, choose_directory, read_run, write_atomically, write_run
from jax_mlm.step import compile_step, init_state, make_eval_step, make_train_step


def compute_dtype(config: TrainConfig) -> Any:
    """float32 on CPU, bfloat16 on accelerators, unless the configuration says which."""
    if config.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.dtype)


def compile_cache(config: TrainConfig) -> Path:
    """Where XLA keeps what it compiled, by number of cores: on CPU a program is cut for those it was compiled on.

    JAX's own key leaves them out: a program compiled on one core would run on all of them a fifth slower.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cache_folder(config) / "xla" / f"{cores}-cores"


class Meter:
    """Adds up the metrics of the steps between two log lines, always one step behind the one just dispatched."""

    def __init__(self, peak: float | None) -> None:
        """`peak`: operations a second of all devices together, where known."""
        self._peak = peak
        self._pending: Any = None
        self._reset()

    def _reset(self) -> None:
        self._sums, self._tokens, self._flops, self._since = Result(0, 0, 0), 0, 0.0, time.perf_counter()

    def add(self, metrics: Any, tokens: int, flops: float) -> None:
        """Takes the step just dispatched, and waits for the one before it."""
        before, self._pending = self._pending, (metrics, tokens, flops)
        if before is not None:
            self._take(before)

    def _take(self, step: Any) -> None:
        self._sums += Result(*map(float, jax.device_get(step[0])))
        self._tokens += step[1]
        self._flops += step[2]

    def read(self, wait: bool) -> dict[str, float]:
        """Figures since the last reading; `wait` includes the step just dispatched (before a validation or the end)."""
        if wait and self._pending is not None:
            self._take(self._pending)
            self._pending = None
        seconds = max(time.perf_counter() - self._since, 1e-9)
        figures = {
            "loss": self._sums.loss,
            "accuracy": self._sums.accuracy,
            "tokens_per_second": self._tokens / seconds,
        }
        if self._peak:
            figures["mfu"] = self._flops / seconds / self._peak
        self._reset()
        return figures


def spread(total: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """`wanted` of `total` row numbers at even distances (all when 0), and the others."""
    count = total if wanted <= 0 else min(wanted, total)
    chosen = np.arange(count) * total // count
    return chosen, np.setdiff1d(np.arange(total), chosen)


def print_result(data: Dataset, result: Result) -> None:
    """Prints the held-out figures beside those of guessing by frequency alone."""
    size = data.vocabulary.size
    ordinary = np.setdiff1d(np.arange(size), data.vocabulary.special)
    loss, accuracy = unigram_baseline(
        token_counts(data.train, size)[ordinary], token_counts(data.valid, size)[ordinary]
    )
    print(f"validation, {int(result.count)} targets at 15 % masks (80/10/10), {len(data.valid)} rows")
    print(f"  this model         loss {result.loss:.4f}   accuracy {result.accuracy:.4f}")
    print(f"  unigram baseline   loss {loss:.4f}   accuracy {accuracy:.4f}")


def train(config: TrainConfig) -> Path:
    """Runs the whole of it and returns the run directory.

    Raises:
        UserError: a mistake in the options or the data; nothing has been written to the run directory then.
        KeyboardInterrupt: asked to stop; the state is saved.
    """
    # ---- where, on what, from what ----------------------------------------------------------------------------------
    sharding.initialize()
    run = choose_directory(config)
    budget = parse_budget(config.budget) if config.budget else None
    if budget is None and config.steps < 1:
        raise UserError(f"--steps must be at least 1, not {config.steps}")
    mesh = sharding.make_mesh(config.batch, config.accumulate)
    print(sharding.describe_devices(), file=sys.stderr)
    sharding.warn_of_unused_accelerator()
    jax.config.update("jax_compilation_cache_dir", str(compile_cache(config)))
    data = open_dataset(config, run)
    config, length, vocabulary = data.config, data.config.corpus.length, data.vocabulary

    # ---- functions --------------------------------------------------------------------------------------------------
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    forward = make_forward(config.model, compute_dtype(config))
    tx, schedule = make_optimizer(config.optim), make_schedule(config.optim)
    train_step = make_train_step(forward, tx, schedule, config.mask, vocabulary, length, step_key, config.accumulate)
    eval_step = make_eval_step(forward, EVAL_MASK, vocabulary, length, jax.random.key(EVAL_SEED))
    place, shard = sharding.make_placer(mesh), (jax.process_index(), jax.process_count())
    everywhere = sharding.replicated(mesh)

    # ---- state ------------------------------------------------------------------------------------------------------
    state = jax.jit(lambda k: init_state(init_params(config.model, k), tx), out_shardings=everywhere)(init_key)
    run.mkdir(parents=True, exist_ok=True)
    manager = open_checkpoints(run)
    meta: dict[str, Any] = {"step": 0, "elapsed": 0.0, "horizon": 0}
    if config.resume:
        state, meta = restore(manager, state) or (state, meta)
    else:
        write_atomically(run / TOKENIZER_FILE, data.tokenizer.to_str(pretty=True))
    write_run(run, config, sharding.device_facts(), {"files": list(config.data), **data.fingerprints})
    first = done = int(meta["step"])

    # ---- compilation, before the clock starts -----------------------------------------------------------------------
    def make_batch(step: int) -> tuple[Any, int, float]:
        batch = batch_at(data.train, step, config.seed, config.batch, shard)
        tokens = int((batch.segments > 0).sum()) * shard[1]
        flops = train_flops(config.model, tokens, tokens * length, config.batch * slots(config.mask, length))
        return place(batch), tokens, flops

    def horizon_array(horizon: int) -> Any:
        return jax.device_put(np.int32(horizon), everywhere)

    eval_batch = config.batch // config.accumulate
    example = place(batch_of(data.valid, np.arange(eval_batch // shard[1])))
    began = time.perf_counter()
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=everywhere)
    compiled_step = compile_step(jitted.lower(state, make_batch(first)[0], horizon_array(1)))
    compiled_eval = compile_step(jax.jit(eval_step, out_shardings=everywhere).lower(state.params, example))
    compile_seconds = time.perf_counter() - began

    def validate(indices: np.ndarray) -> Result:
        return evaluate_rows(compiled_eval, state.params, data.valid, indices, eval_batch, place, shard)

    # ---- the loop ---------------------------------------------------------------------------------------------------
    progress, log = Progress(), MetricsLog(run, first if config.resume else None, config.tensorboard)
    progress.say(
        f"{sum(x.size for x in jax.tree.leaves(state.params)):,} parameters, {len(data.train):,} rows of {length} "
        f"tokens to train on, {len(data.valid):,} to validate; compiled in {compile_seconds:.1f} s; run directory {run}"
    )
    subset, others = spread(len(data.valid), config.eval_rows)
    peak = peak_flops(jax.devices()[0].device_kind)
    meter = Meter(peak * jax.device_count() if peak else None)
    pace = Pace(config.steps, budget, config.eval_every, meta, len(data.valid) / len(subset))
    with stop_request() as stop_asked, prefetch(make_batch, itertools.count(first)) as batches:
        while done < pace.horizon and not stop_asked():
            batch, tokens, flops = next(batches)
            state, metrics = compiled_step(state, batch, horizon_array(pace.horizon))
            meter.add(metrics, tokens, flops)
            done += 1
            evaluating = pace.evaluation_due(done)
            if done % config.log_every == 0 or done.bit_count() == 1 or evaluating:
                pace.measure(done)
            if done % config.log_every == 0 or evaluating or done >= pace.horizon:
                figures = meter.read(wait=evaluating or done >= pace.horizon)
                log.write("train", done, {**figures, **scheduled(config, schedule, done, pace)})
                progress.update(done, pace.horizon, describe(figures), pace.seconds_left())
                check_finite(figures["loss"], done, run)
            if evaluating:
                with pace.evaluating():
                    result = validate(subset)
                    log.write("valid", done, {"loss": result.loss, "accuracy": result.accuracy})
                    save(manager, state, pace.meta(done), result.loss)
                    write_plots(run)
                progress.say(
                    f"step {done}/{pace.horizon}  valid loss {result.loss:.4f}  accuracy {result.accuracy:.4f}"
                )
        stopped = done < pace.horizon

    # ---- the end ----------------------------------------------------------------------------------------------------
    if stopped:
        if manager.latest_step() != done:
            save(manager, state, pace.meta(done), None)
    else:
        result = validate(subset)
        log.write("valid", done, {"loss": result.loss, "accuracy": result.accuracy})
        if manager.latest_step() != done:
            save(manager, state, pace.meta(done), result.loss)
        result += validate(others)
        log.write("final", done, {"loss": result.loss, "accuracy": result.accuracy, "seconds": pace.elapsed()})
        write_plots(run)
    manager.wait_until_finished()
    manager.close()
    log.close()
    progress.close()
    if stopped:
        raise KeyboardInterrupt(f"saved step {done}; continue with: python -m jax_mlm.train --resume --out {run}")
    if data.held_out:
        print_result(data, result)
    else:
        print_predictions(predict_each(forward, to_host(state.params), data.tokenizer, vocabulary, SENTENCE))
        print("This is one sentence, learned by heart: there is no held-out text, so no measure of anything beyond.")
        print("For a model of your own text: python -m jax_mlm.train --data FILE")
    return run


def scheduled(config: TrainConfig, schedule: Any, done: int, pace: Pace) -> dict[str, float]:
    """The scheduled quantities of the step that was done last."""
    lr = config.optim.lr * float(schedule(done - 1, pace.horizon))
    mask_rate = float(rate_at(config.mask, done - 1, pace.horizon))
    return {"lr": lr, "mask_rate": mask_rate, "seconds": pace.elapsed()}


def describe(figures: dict[str, float]) -> str:
    """Figures of the progress line."""
    mfu = f"  mfu {figures['mfu']:.1%}" if "mfu" in figures else ""
    return (
        f"loss {figures['loss']:.3f}  accuracy {figures['accuracy']:.3f}  "
        f"{figures['tokens_per_second']:,.0f} tokens/s{mfu}"
    )


def check_finite(loss: float, step: int, run: Path) -> None:
    """Ends a run that has diverged."""
    if not math.isfinite(loss):
        raise UserError(f"the loss of {run} is {loss} at step {step}: it diverged, try a lower --lr")


EXAMPLES = """examples:
  python -m jax_mlm.train                                     the founding sentence, in seconds
  python -m jax_mlm.train --data my-text/ --budget 30m        your own text, half an hour
  python -m jax_mlm.train --resume --out runs/tiny            go on with a run"""

FREE_ON_RESUME = {"steps", "budget", "resume", "out", "eval_every", "eval_rows", "log_every", "tensorboard", "dtype"}
"""Fields that may differ from those a run began with."""


def option(argv: Sequence[str], name: str) -> str | None:
    """The value of --name in raw arguments: needed before the others can be read."""
    for i, word in enumerate(argv):
        if word == f"--{name}" and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def defaults(argv: Sequence[str]) -> TrainConfig:
    """The defaults that options are read over: those of the run to resume, or of the preset."""
    out, preset = option(argv, "out"), option(argv, "preset")
    if "--resume" in argv and out and (Path(out) / RUN_FILE).is_file():
        return replace(read_run(Path(out)), resume=True, out=out)
    if preset is None:
        if option(argv, "data") is None:
            return PRESETS["sentence"]
        preset = "tiny" if jax.default_backend() == "cpu" else "small"
        print(f"--data without --preset: taking {preset} for {jax.default_backend()}", file=sys.stderr)
    if preset not in PRESETS:
        raise UserError(
            f"--preset {preset} is unknown: choose from {', '.join(PRESETS)}.{nearest(preset, list(PRESETS))}"
        )
    return replace(PRESETS[preset], steps=0) if option(argv, "budget") is not None else PRESETS[preset]


def check_resumed(config: TrainConfig) -> None:
    """Refuses options that contradict the run to resume."""
    if not config.resume or not config.out or not (Path(config.out) / RUN_FILE).is_file():
        return
    before = read_run(Path(config.out))
    for field in dataclasses.fields(TrainConfig):
        if field.name not in FREE_ON_RESUME and getattr(config, field.name) != getattr(before, field.name):
            raise UserError(
                f"--resume continues {config.out} with its own options, but {field.name} differs from its {RUN_FILE}"
            )


def main(config: TrainConfig) -> None:
    """Trains, and says what to type next; the last line on stdout is the run directory."""
    check_resumed(config)
    run = train(config)
    query = SENTENCE.replace("creates", "[MASK]") if not config.data else "… [MASK] …"
    print("next:")
    print(f"  python -m mlm_onnx convert {run} bundles/{run.name}")
    print(f'  python -m mlm_onnx fill bundles/{run.name} "{query}"')
    print(run)


if __name__ == "__main__":
    sys.exit(run_command("python -m jax_mlm.train", TrainConfig, main, EXAMPLES, default=defaults))
