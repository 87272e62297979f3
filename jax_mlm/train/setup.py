"""Everything that a run is made of, read and checked before anything is written: all refusals happen here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jax_mlm.config import Json, TrainConfig
from jax_mlm.cost.memory import check_memory
from jax_mlm.data.batches import Rows
from jax_mlm.data.dataset import Dataset, open_dataset
from jax_mlm.data.labelled import Labelled, LabelledRows
from jax_mlm.errors import UserError
from jax_mlm.evals.heldout import Validates
from jax_mlm.evals.samples import Answer
from jax_mlm.files import cache_folder, make_folder
from jax_mlm.model.encoder import Params
from jax_mlm.model.ops.kernels import OURS, Kernels
from jax_mlm.parallel import hosts
from jax_mlm.parallel.attention import choose_attention, line_of
from jax_mlm.parallel.compile import compile_cache, compute_dtype, resolved
from jax_mlm.parallel.devices import describe_devices, describe_machine, memory_of_device, warn_of_unused_accelerator
from jax_mlm.parallel.mesh import layout_of, make_mesh
from jax_mlm.run.checkpoint import has_checkpoint
from jax_mlm.run.directory import RUN_FILE, choose_directory, read_run_file, read_task, tidy
from jax_mlm.run.lock import NAME, Check, beside, locked, refuse_if_locked
from jax_mlm.run.trackers import check_tracker
from jax_mlm.signals import Stopped, number_of
from jax_mlm.tasks.distil import distilled
from jax_mlm.tasks.mlm import masked_lm
from jax_mlm.tasks.task import Task
from jax_mlm.train.duration import parse_budget
from jax_mlm.train.new_words import never_seen
from jax_mlm.train.options import check_resumed
from jax_mlm.train.start import Initial
from jax_mlm.train.survey import Survey, survey
from jax_mlm.train.teacher import resolve_start
from jax_mlm.train.unchanged import check_unchanged

Measures = Callable[["Setup", Params, Callable[[Any], Any]], tuple[Validates, Callable[[Params], tuple[Answer, ...]]]]
"""(setup, parameters, placer of batches) → validation, and answers to samples."""


TRIED = 32
"""Rows of a device that kernels are tried with where the number of microbatches follows later."""


@dataclass(frozen=True)
class Setup:
    """What a run is made of; none of it changes while it trains."""

    config: TrainConfig
    """Complete: the vocabulary's size and the model's shape are filled in."""
    run: Path
    budget: float | None
    """Seconds; None if the number of steps is given."""
    mesh: Mesh
    data: Dataset | Labelled
    survey: Survey
    start: Initial | None
    """The weights of --init or of a teacher; None for random ones and for a resumed run."""
    teacher: Initial | None
    task: Task[Any]  # its Example type does not matter here
    measures: Measures | None = None
    """Compiles the validation of a fine-tuned model; None for masked tokens."""
    tuned: Json | None = None
    """What run.json keeps of a fine-tuned model besides."""
    patience: int = 0
    """Validations without a better one that end the run; 0 for none."""
    attention: Json = field(default_factory=dict)
    """What was tried to compute attention on this device, and what was chosen; empty where ours is the only one."""

    @property
    def masked(self) -> Dataset:
        """Return the data of a run that learns masked tokens."""
        assert isinstance(self.data, Dataset)
        return self.data

    @property
    def shard(self) -> tuple[int, int]:
        """Return this host's number, and how many there are."""
        return jax.process_index(), jax.process_count()


@contextmanager
def claimed(config: TrainConfig) -> Iterator[tuple[TrainConfig, Path, Check]]:
    """Give the run directory, which nobody else writes to in this context, and the config of the run in it.

    `--resume` of a run that was killed before it wrote `run.json` begins it anew. The first host holds the lock for
    all. A request to stop leaves this context with a line that tells how to continue.

    Raises:
        UserError: the options contradict the run, or the directory cannot be used.
    """
    hosts.join(config.multi_host)  # done already if the options came from a command line
    check_resumed(config)
    run = hosts.on_every_host(lambda: choose_directory(config))
    config = resolved(replace(config, resume=config.resume and (run / RUN_FILE).is_file()))
    hosts.agree("options", f"{run} {config}")
    with ExitStack() as stack:

        def lock() -> Check:
            if not hosts.is_first():
                return lambda: None
            refuse_if_locked(beside(run), run)
            check = stack.enter_context(locked(run / NAME, "--out", run))
            tidy(run, config.resume)
            return check

        check = hosts.on_every_host(lock)
        try:
            yield config, run, check
        except KeyboardInterrupt as stop:
            raise Stopped(number_of(stop), str(stop) or _how_to_continue(run)) from None


def _how_to_continue(run: Path) -> str:
    if not (run / RUN_FILE).is_file():
        return "no step was done yet; run the same command again"
    saved = "the last checkpoint is kept" if has_checkpoint(run) else "no step was saved yet"
    return f"{saved}; continue with: {resume_command(run)}"


def resume_command(run: Path) -> str:
    """Return the command line that continues a run."""
    tuned = (run / RUN_FILE).is_file() and "finetune" in read_run_file(run)
    return f"python -m jax_mlm.{'finetune' if tuned else 'train'} --resume --out {shlex.quote(str(run))}"


def check_run(config: TrainConfig, run: Path) -> tuple[float | None, Mesh]:
    """Return the budget in seconds and the mesh, once the options fit the run and the machine, on all hosts alike.

    Raises:
        UserError: a mistake in the options.
    """
    if config.resume:
        hosts.on_every_host(lambda: check_unchanged(run, config))
    check_tracker(config.track)
    budget = parse_budget(config.budget) if config.budget else None
    if budget is None and config.steps < 1:
        raise UserError(f"--steps must be at least 1, not {config.steps}")
    mesh = make_mesh(config.batch, config.accumulate or 1, config.mesh)
    layout = layout_of(mesh)
    check_memory(config, memory_of_device(), *layout)
    print(describe_devices() + (f", mesh {layout}" if config.mesh else ""), file=sys.stderr)
    warn_of_unused_accelerator()
    make_folder(cache_folder(config), "--cache")
    jax.config.update("jax_compilation_cache_dir", str(compile_cache(config)))
    if config.resume and (config.init or config.distil.distil) and not has_checkpoint(run):
        raise UserError(f"{run} has lost its checkpoints, and with them the weights it started from: start a new run")
    return budget, mesh


def set_up(config: TrainConfig, run: Path) -> Setup:
    """Read and check what the options name, on all hosts alike.

    Raises:
        UserError: a mistake in the options or the data.
    """
    if config.resume and read_task(run) is not None:
        raise UserError(f"{run} was fine-tuned: continue it with {resume_command(run)}")
    budget, mesh = check_run(config, run)
    config, start, teacher, tokenizer = hosts.on_every_host(lambda: resolve_start(config, run))
    config = replace(config, embeddings="random") if start else config  # none are made anew
    data = hosts.on_every_host(lambda: open_dataset(config, run, given=tokenizer))
    if config.add_tokens and not config.resume:
        for line in never_seen(config.add_tokens, data.tokenizer, data.train.files.tokens):
            print(line, file=sys.stderr)
    hosts.agree("text", str(data.fingerprints))
    looked = survey(data)
    if data.config.data:
        _say(looked, data.config.resume)
    kernels, attention = kernels_of(data.config, data.train, mesh, run)
    task = task_of(data, teacher, kernels)
    return Setup(data.config, run, budget, mesh, data, looked, start, teacher, task, attention=attention)


def kernels_of(config: TrainConfig, rows: Rows | LabelledRows, mesh: Mesh, run: Path) -> tuple[Kernels, Json]:
    """Return the kernels of attention, and what was tried: on an accelerator, on the first rows of one device."""
    if jax.default_backend() == "cpu":
        return OURS, {}
    most = config.batch // layout_of(mesh).rows
    share = np.arange(most // config.accumulate if config.accumulate else min(most, TRIED)) % len(rows)
    device = read_run_file(run).get("device") if config.resume else None
    before = None
    if isinstance(device, dict) and device.get("kind") == describe_machine()["kind"]:
        before = device.get("attention")
    segments = np.asarray(rows.gather(share).segments)
    kernels, record = choose_attention(config.model, compute_dtype(config), mesh, segments, rows.documents, before)
    if record != (before or {}):
        print(line_of(record), file=sys.stderr, flush=True)
    return kernels, record


def _say(looked: Survey, resume: bool) -> None:
    """Print the summary and its warnings; refuse a new run that has nothing to learn."""
    for line in (*looked.lines, *(f"warning: {line}" for line in looked.warnings)):
        print(line, file=sys.stderr, flush=True)
    if looked.refusal and not resume:
        raise UserError(looked.refusal)


def task_of(
    data: Dataset, teacher: Initial | None, kernels: Kernels = OURS
) -> Task[Any]:  # MaskedBatch, or DistilBatch
    """Return what the run learns: masked tokens, and a teacher's predictions of them if there is a teacher."""
    config, dtype = data.config, compute_dtype(data.config)
    task = masked_lm(config.model, config.mask, data.vocabulary, config.corpus.length, dtype, kernels)
    if teacher is None:
        return task
    return distilled(task, config.distil, config.model, teacher.model, teacher.params, dtype, kernels)
