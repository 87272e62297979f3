"""What a fine-tuning consists of: examples, task, weights and recipe, read and checked before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import LARGEST as MOST_STEPS
from jax_mlm.config import DataConfig, Json, ModelConfig, OptimConfig, TaskConfig, TrainConfig, to_json
from jax_mlm.data.align import encoded, frame_of
from jax_mlm.data.batches import batch_of
from jax_mlm.data.examples import CHOSEN_BY, Examples, read_examples
from jax_mlm.data.labelled import Labelled, LabelledRows
from jax_mlm.data.labels import Columns, Example, check_labels, labels_of, problem_of, several
from jax_mlm.data.tokenizer import load_tokenizer, vocabulary_of
from jax_mlm.errors import UserError, unknown_choice
from jax_mlm.evals.answers import Laid, lay_out
from jax_mlm.evals.labelled import TaskValidator
from jax_mlm.evals.samples import Answer
from jax_mlm.hf.tasks import check_family
from jax_mlm.model.encoder import Params
from jax_mlm.model.task_heads import begin_with
from jax_mlm.parallel.compile import compile_step, compute_dtype
from jax_mlm.parallel.mesh import layout_of, read_layout, replicated
from jax_mlm.run.directory import TOKENIZER_FILE, read_run, read_run_file, read_task
from jax_mlm.tasks.classify import class_weights, labelled, make_logits
from jax_mlm.tasks.questions import longest_answer
from jax_mlm.tasks.tagging import check_types, tags_for, types_of
from jax_mlm.train.finetune_options import FinetuneConfig
from jax_mlm.train.memory import TUNED
from jax_mlm.train.pretrained import LARGEST, read_pretrained, shrunk
from jax_mlm.train.setup import Setup, check_run, kernels_of
from jax_mlm.train.start import Initial
from jax_mlm.train.survey import Survey

DROPOUT = 0.1
"""Dropout of fine-tuning, whatever pretraining had: there are few examples, and they are seen several times."""
EXAMPLES_A_STEP = 32
LONGEST = 512
"""Tokens of the longest row that is taken without --length."""
LOOKED_AT = 256
"""Texts of the most characters, among which is the one of the most tokens, or one that is about as long."""
AT_ONCE = 16
"""Rows that validation computes at once, at least."""
METRICS = {"single": "accuracy", "multi": "micro_f1", "regression": "pearson"}


class Plan(NamedTuple):
    """A fine-tuning that is ready to be run."""

    options: FinetuneConfig
    config: TrainConfig
    task: TaskConfig
    data: Labelled
    choosing: Laid
    """The examples that choose among checkpoints, as `data.valid` has them."""
    report: Sequence[Example]
    learned: int
    """Number of examples to learn."""
    start: Initial | None
    lines: tuple[str, ...]


def plan(options: FinetuneConfig) -> Plan:
    """Read the examples, decide what is to be learned and how, and begin with the given weights.

    Raises:
        UserError: a mistake in the options or in the files.
    """
    columns = Columns(options.text, options.pair, options.label)
    kind = cast(Any, options.task)
    examples = read_examples(kind, options.data, options.valid, options.test, columns, options.problem)
    task, lines = _task(options, examples)
    before = read_run(Path(options.out)) if options.resume else None
    if before is not None:
        model, tokenizer, given = before.model, load_tokenizer(Path(options.out) / TOKENIZER_FILE), None
        kept = read_task(Path(options.out))
        task = replace(task, pooling=kept.pooling if kept else task.pooling)
    else:
        given = read_pretrained(Path(options.init), task)
        tokenizer = given.tokenizer
        task = replace(task, pooling=given.pooling if task.kind == "classify" else task.pooling)
        check_family(given.model.family, task.kind, f"--init {options.init}")
        model = replace(given.model, dropout=max(given.model.dropout, DROPOUT))
    length = before.corpus.length if before else _length(options, model, tokenizer, examples, task)
    task = replace(task, overlap=length // 4 if options.overlap < 0 else options.overlap)
    train, choosing = (lay_out(tokenizer, each, task, length) for each in (examples.train, examples.choose))
    if train.asked is not None:
        task = replace(task, max_answer=longest_answer(train.asked.sizes))
        lines += (f"answers of up to {task.max_answer} tokens",)
    if options.resume:
        _check_same(Path(options.out), task, examples.fingerprints)
    if options.class_weights:
        weights = class_weights(options.class_weights, task, train.targets)
        train, choosing = (each.weighted(weights) for each in (train, choosing))
    pad = vocabulary_of(tokenizer).pad
    rows, valid = train.rows(length, pad, options.seed), choosing.rows(length, pad)
    config, start = before, None
    if given is not None:
        config = _recipe(options, model, options.lr or given.rate, rows, len(examples.train))
        begun = begin_with(given.params, model, task, jax.random.key(options.seed))
        lines += (f"starting fresh: {', '.join(begun.fresh)}",) if begun.fresh else ()
        params, factor = shrunk(begun.params) if given.from_scratch and not options.freeze else (begun.params, 1.0)
        if factor < 1:
            lines += (f"matrices of a root mean square above {LARGEST:g} are scaled to that, by {factor:.2f} or more",)
        origin = {"from": str(Path(options.init).resolve()), **({"shrunk": factor} if factor < 1 else {})}
        start = Initial(model, params, tokenizer, origin)
    assert config is not None
    config = replace(config, resume=options.resume, out=options.out, mesh=options.mesh)
    remarks = (*examples.remarks, *train.remarks, *choosing.remarks)
    lines += (
        f"{len(examples.train):,} examples in {len(rows):,} rows of {length} tokens; {config.batch} rows a step, "
        f"learning rate {config.optim.lr:g}, {f'{config.steps:,} steps' if config.steps else config.budget}",
        f"{len(examples.choose):,} examples choose the checkpoint by {task.metric}"
        + ("" if options.test else f", held out from {options.data}"),
        *_warning(task, choosing),
    )
    data = Labelled(config, tokenizer, rows, valid, examples.fingerprints)
    return Plan(options, config, task, data, choosing, examples.report, len(examples.train), start, (*lines, *remarks))


def _task(options: FinetuneConfig, examples: Examples) -> tuple[TaskConfig, tuple[str, ...]]:
    """Return what is to be learned, and what there is to say about it; all labels are checked."""
    every = [*examples.train, *examples.choose]
    learned = examples.train if options.test else every  # without --test, both are of the training file
    named = tuple(dict.fromkeys(part for each in options.labels.split(",") if (part := each.strip())))
    columns = (examples.columns.text, examples.columns.pair, examples.columns.label)
    if options.task == "tag":
        types = named or types_of(learned)
        task = TaskConfig(
            "tag", tags_for(types), metric=_metric(options, "f1", ("f1", "macro_f1", "conlleval_f1", "loss"))
        )
        for each in (every, examples.report):
            check_types(each, task.labels)
        return task, (f"entities: {', '.join(types)}", *_not_learned(examples, task))
    if options.task == "answer":
        found, without = (sum(bool(e.answers) is has for e in learned) for has in (True, False))
        if not found:
            raise UserError(f"{options.data}: no question has an answer: there is nothing to find")
        metric = _metric(options, "f1", ("f1", "exact", "loss"))
        no_answer = bool(without)
        task = TaskConfig("answer", pair=True, metric=metric, columns=columns, no_answer=no_answer)
        contexts = len({example.text for example in learned})
        none = f"; {without:,} have no answer, and the model may say so" if without else ", each with an answer"
        return task, (f"{found + without:,} questions about {contexts:,} contexts{none}",)
    problem = problem_of(learned) if options.problem == "auto" else options.problem
    found = labels_of(learned, problem)
    if named and problem == "regression":
        raise UserError("--labels is for texts with labels, not for the numbers of --problem regression")
    labels = () if problem == "regression" else named or found
    for each in (every, examples.report):
        check_labels(each, labels, problem)
    allowed = {
        "single": ("accuracy", "macro_f1", "mcc", "loss", *(["f1"] if len(labels) == 2 else [])),
        "multi": ("micro_f1", "macro_f1", "accuracy", "loss"),
        "regression": ("pearson", "spearman", "rmse", "loss"),
    }[problem]
    metric = _metric(options, METRICS[problem], allowed)
    task = TaskConfig("classify", labels, problem, bool(options.pair), metric=metric, columns=columns)
    what = {"single": "one of the labels", "multi": "any of the labels", "regression": "a number"}[problem]
    told = " (told by the labels; --problem decides otherwise)" if options.problem == "auto" else ""
    shown = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
    learning = f"to learn from column {columns[0]!r}: {what}{f' {shown}' if labels else ''}{told}"
    return task, (learning, *_not_learned(examples, task))


def _not_learned(examples: Examples, task: TaskConfig) -> tuple[str, ...]:
    """Return a remark where a label is only among the examples that choose."""

    def labels(example: Example) -> Sequence[str]:
        if task.kind == "tag":
            return [span.label for span in example.spans or ()]
        return several(example.label) if task.problem == "multi" else [str(example.label)]

    if task.problem == "regression":
        return ()
    known = {label for example in examples.train for label in labels(example)}
    others = ((e.where, label) for e in examples.choose for label in labels(e) if label not in known)
    return tuple(f"{where}: no example that is learned has the label {label!r}" for where, label in others)[:1]


def _warning(task: TaskConfig, choosing: Laid) -> tuple[str, ...]:
    """Return a warning if a single example chooses, or the metric cannot tell checkpoints apart."""
    count, right = len(choosing.examples), choosing.targets
    match task.kind, task.metric:
        case "tag", "f1" | "macro_f1" | "conlleval_f1":
            blind = not any(example.spans for example in choosing.examples)
        case "classify", "pearson" | "spearman" | "mcc":
            blind = bool((right == right[0]).all())
        case "classify", "f1" | "micro_f1":
            blind = not right.any()
        case _:
            blind = False
    if count > 1 and not blind:
        return ()
    what = "one example chooses" if count == 1 else f"{task.metric} of the {count:,} examples that choose is always 0"
    return (f"warning: {what}: give others with --valid, and those to report on with --test",)


def _metric(options: FinetuneConfig, usual: str, allowed: Sequence[str]) -> str:
    if options.metric and options.metric not in allowed:
        raise unknown_choice("--metric", options.metric, allowed)
    return options.metric or usual


def _length(
    options: FinetuneConfig, model: ModelConfig, tokenizer: Tokenizer, examples: Examples, task: TaskConfig
) -> int:
    """Return the tokens of a row: those of the longest text, rounded up to a multiple of 64, and at least 128."""
    if options.length:
        if options.length > model.max_length:
            raise UserError(
                f"--length {options.length} exceeds the {model.max_length} positions of --init {options.init}"
            )
        return options.length
    texts = sorted(((e.text, e.pair or "") for e in examples.train), key=lambda pair: -len(pair[0]) - len(pair[1]))
    firsts, seconds = (encoded(tokenizer, side) for side in zip(*texts[:LOOKED_AT], strict=True))
    longest = max(len(one.ids) + len(two.ids) for one, two in zip(firsts, seconds, strict=True))
    longest += frame_of(tokenizer, task.pair).size
    return min(max(128, -(-longest // 64) * 64), LONGEST, model.max_length)


def _recipe(options: FinetuneConfig, model: ModelConfig, rate: float, rows: LabelledRows, examples: int) -> TrainConfig:
    """Return AdamW with a linear decay, and the rows of a step and the steps that suit the number of examples."""
    devices = read_layout(options.mesh, jax.device_count()).rows
    batch = options.batch or -(-max(1, round(EXAMPLES_A_STEP * len(rows) / examples)) // devices) * devices
    epochs = options.epochs or (3 if examples > 50_000 else 10 if examples >= 5_000 else 20)
    steps = max(1, round(epochs * len(rows) / batch))
    if steps > MOST_STEPS:
        raise UserError(f"--epochs {epochs:g} of {len(rows):,} rows are more than {MOST_STEPS} steps: give fewer")
    return TrainConfig(
        preset=TUNED,
        data=(options.data,),
        valid=tuple(filter(None, (options.valid, options.test))),
        init=options.init,
        out=options.out,
        steps=0 if options.budget else steps,
        budget=options.budget,
        seed=options.seed,
        batch=batch,
        # On a CPU, 1: a batch that is too large for the machine is refused at once.
        accumulate=1 if jax.default_backend() == "cpu" else 0,
        model=model,
        corpus=DataConfig(length=rows.length),
        optim=OptimConfig(
            lr=rate,
            schedule="linear",
            warmup=0.1,
            beta2=0.999,
            decay=0.0,
        ),
    )


def _check_same(run: Path, task: TaskConfig, fingerprints: dict[str, str]) -> None:
    """Refuse to resume a run whose files, and with them its labels or rows, have changed."""
    before = read_run_file(run).get("data", {})
    for name, digest in fingerprints.items():
        if before.get(name) != digest and name == CHOSEN_BY:
            raise UserError(f"{run}: it began with another part of --data to choose by: start a new run")
        if before.get(name) != digest:
            option = "data" if name == "train" else name
            raise UserError(
                f"--{option} has changed since the run in {run} began: restore the file, or start a new run"
            )
    if read_task(run) != task:
        raise UserError(f"{run}: its task differs from what its options and files give now: start a new run")


# ---- the run -------------------------------------------------------------------------------------


def set_up_plan(plan: Plan, config: TrainConfig, run: Path) -> Setup:
    """Return what the training loop needs of a plan; `config` is the plan's own.

    Raises:
        UserError: the options contradict the run, or its directory.
    """
    budget, mesh = check_run(config, run)
    for line in plan.lines:
        print(line, file=sys.stderr, flush=True)
    kernels, attention = kernels_of(config, plan.data.train, mesh, run)
    task = labelled(config.model, plan.task, compute_dtype(config), plan.options.freeze, kernels)
    figures: Json = {"examples": plan.learned, "labels": list(plan.task.labels)}
    return Setup(
        config,
        run,
        budget,
        mesh,
        plan.data,
        Survey(figures, (), (), None),
        plan.start,
        None,
        task,
        measures=partial(_measures, plan),
        tuned={"task": _json(plan.task), "finetune": _json(replace(plan.options, resume=False, json=False))},
        patience=plan.options.patience,
        attention=attention,
    )


def _json(config: TaskConfig | FinetuneConfig) -> Json:
    return to_json(cast(TrainConfig, config))


def _measures(
    plan: Plan, setup: Setup, params: Params, place: Callable[[Any], Any]
) -> tuple[TaskValidator, Callable[[Params], tuple[Answer, ...]]]:
    """Compile the validation on the examples that choose; there are no samples."""
    config, rows = setup.config, plan.data.valid
    batch = min(max(config.batch, AT_ONCE), -(-len(rows) // config.batch) * config.batch)
    devices = layout_of(setup.mesh).rows
    batch = -(-batch // devices) * devices
    logits = make_logits(config.model, plan.task, jnp.float32)
    example = place(batch_of(rows, np.arange(batch)))
    compiled = compile_step(jax.jit(logits, out_shardings=replicated(setup.mesh)).lower(params, example))
    measure = partial(plan.choosing.measured, plan.task)
    validator = TaskValidator(compiled, rows, plan.task, batch, measure, place)
    return validator, lambda params: ()
