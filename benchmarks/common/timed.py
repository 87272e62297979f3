"""Train in this process; validations, checkpoints and drawings do not count as time.

Every run is examined on the same isolated documents under the same masks, however it packs the text to train on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.levers import Ramp, changed
from jax_mlm.config import TrainConfig
from jax_mlm.data.batches import pack_rows
from jax_mlm.evals.heldout import Result, Validates
from jax_mlm.model.heads import make_forward
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run, read_run_file
from jax_mlm.run.log import read_metrics
from jax_mlm.tasks.mlm import make_examine
from jax_mlm.train import loop, optim, state
from jax_mlm.train.__main__ import COMMAND
from jax_mlm.train.pace import Pace
from jax_mlm.train.program import Program, compile_program, masked_measures
from jax_mlm.train.setup import Setup, set_up

LENGTH = 128
"""Tokens of the rows that all runs are examined on."""
LAST_FIFTH = tuple(np.linspace(0.8, 1.0, 20, endpoint=False).tolist())
Params = dict[str, Any]


class Clock:
    """Seconds, without those in which it is stopped."""

    def __init__(self) -> None:
        self._stopped = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._stopped

    @contextmanager
    def stopped(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._stopped += time.perf_counter() - began


class MarkedPace(Pace):
    """The clock of a run that is validated once a mark is passed: a share of its budget, or else of its steps."""

    def __init__(
        self, steps: int, budget: float | None, *given: Any, stopping: Clock, marks: Sequence[float], **more: Any
    ) -> None:
        super().__init__(steps, budget, *given, clock=stopping, **more)
        self._stopping, self._marks_left = stopping, list(marks)

    def evaluation_due(self, done: int) -> bool:
        now = done / self.horizon if self._budget is None else self.elapsed() / self._budget
        before = len(self._marks_left)
        self._marks_left = [mark for mark in self._marks_left if mark > now]
        return len(self._marks_left) < before and done < self.horizon

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        with super().evaluating(), self._stopping.stopped():
            yield


class Averaged:
    """The mean of the parameters that it is given to validate, measured at the end beside the last of them."""

    def __init__(self, inner: Validates) -> None:
        self._inner, self.states = inner, 0
        self.params: Params | None = None
        self.result: Result | None = None

    def __call__(self, params: Params) -> Result:
        self.states += 1
        share, mean, host = 1 / self.states, self.params, jax.device_get(params)
        self.params = host if mean is None else jax.tree.map(lambda old, new: old + share * (new - old), mean, host)
        return self._inner(params)

    def rest(self, params: Params) -> Result:
        assert self.params is not None
        mean = jax.tree.map(lambda old, new: jax.device_put(old, new.sharding), self.params, params)
        self.result = self._inner(mean) + self._inner.rest(mean)
        return self._inner.rest(params)

    def final_over_periodic(self) -> float:
        return self._inner.final_over_periodic()


def on_documents(config: TrainConfig, run: Path) -> Setup:
    """Set up a run that is examined on isolated documents in rows of `LENGTH`, whatever it is trained on."""
    setup = set_up(config, run)
    data, forward = setup.masked, make_forward(setup.config.model)
    held = pack_rows(data.valid.files, data.vocabulary, LENGTH, "document")
    examine = make_examine(forward, data.vocabulary, LENGTH)
    return replace(setup, data=data._replace(valid=held), task=replace(setup.task, examine=examine))


def orthogonalise_apart() -> None:
    """Let Muon orthogonalise the fused matrix of queries, keys and values as three."""
    whole = optim._every_orthogonalised

    def apart(matrices: Params, products: optim.Products) -> Params:
        def split(path: Any, x: jax.Array) -> list[jax.Array]:
            fused = any(getattr(key, "key", "") == "qkv" for key in path)
            return jax.numpy.split(x, 3, axis=1) if fused else [x]

        parts = whole(jax.tree_util.tree_map_with_path(split, matrices), products)
        return jax.tree.map(lambda x, part: jax.numpy.concatenate(part, 1), matrices, parts)

    optim._every_orthogonalised = apart


def smaller_with_depth(params: Params, layers: int) -> Params:
    """Return new weights of which those that end a layer's two parts are divided by √(2 · layers), as in GPT-2."""

    def scaled(path: Any, x: jax.Array) -> jax.Array:
        ends = {"out", "down"}.intersection(getattr(key, "key", "") for key in path)
        return x / np.sqrt(2 * layers, dtype=np.float32) if ends else x

    return jax.tree_util.tree_map_with_path(scaled, params)


def ramped(ramp: Ramp, compile_last: Callable[..., Program]) -> Callable[..., Program]:
    """Return a compiler of a run whose batch or length grows: each part of it is a program with data of its own."""

    def compiled(setup: Setup, *given: Any) -> Program:
        begins = [share * setup.config.steps for share, _ in ramp]

        parts = [on_documents(changed(setup.config, fields), setup.run) for _, fields in ramp]
        programs = [compile_last(part, *given) for part in parts]

        def at(step: int) -> Program:
            return next(program for begin, program in zip(begins[::-1], programs[::-1], strict=True) if step >= begin)

        return programs[-1]._replace(
            step=lambda state, batch, done, *controls: at(done).step(state, batch, done, *controls),
            batch_at=lambda step, order: at(step).batch_at(step, order),
        )

    return compiled


def train_marked(
    options: Sequence[str], marks: Sequence[float] = (), how: str = "", ramp: Ramp = ()
) -> tuple[Path, Averaged | None]:
    """Train as `python -m jax_mlm.train` does with these options.

    Args:
        options: of the command; `--valid` is among them.
        marks: shares of the budget or of the steps at which to validate; the end is one in any case.
        how: what no option gives, as in `Arm`; to measure the mean of states takes the place of marks.
        ramp: how the batch or the length grows with the steps.
    """
    config, clock, found = COMMAND.read(options), Clock(), list[Averaged]()

    def measures(setup: Setup, params: Params, place: Any) -> Any:
        validate, answers = masked_measures(setup, params, place)
        found.append(Averaged(validate))
        return found[0], answers

    def prepared(config: TrainConfig, run: Path) -> Setup:
        setup = on_documents(config, run)
        first = setup.task.init
        if how == "depth":
            setup = replace(
                setup, task=replace(setup.task, init=lambda key: smaller_with_depth(first(key), config.model.layers))
            )
        return replace(setup, measures=measures) if how == "mean" else setup

    # Of this process alone:
    loop.Pace = partial(MarkedPace, stopping=clock, marks=LAST_FIFTH if how == "mean" else sorted(marks))
    if how == "apart":
        orthogonalise_apart()
    if how == "random":
        state.handing_on = lambda params: params
    if ramp:
        loop.compile_program = ramped(ramp, compile_program)
    run = loop.train(config, set_up=prepared)
    return run, found[0] if found else None


def curve_of(run: Path) -> list[list[float]]:
    """Return [seconds, loss, accuracy] of each validation on a part of the rows."""
    lines = read_metrics(run)
    seconds = {line["step"]: line["seconds"] for line in lines if line["kind"] == "train"}
    return [
        [round(seconds[line["step"]], 2), line["loss"], line["accuracy"]] for line in lines if line["kind"] == "valid"
    ]


def record_of(run: Path) -> dict[str, Any]:
    """Return what a run has reached, and what it was."""
    lines, file, config = read_metrics(run), read_run_file(run), read_run(run)
    final, trained = lines[-1], [line for line in lines if line["kind"] == "train"]
    assert final["kind"] == "final"
    return {
        "loss": final["loss"],
        "accuracy": final["accuracy"],
        "steps": final["step"],
        "seconds": round(trained[-1]["seconds"], 2),
        "tokens": sum(line["tokens"] for line in trained),
        "dtype": config.dtype,
        "seed": config.seed,
        "versions": file["versions"],
        "device": file["device"],
    }


def last_params(run: Path) -> Params:
    """Return the parameters that the final figures are of."""
    return load_params(run, "latest")[1]
