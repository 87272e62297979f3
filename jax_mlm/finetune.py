"""Fine-tune a pretrained encoder; `python -m jax_mlm.finetune`."""

from __future__ import annotations

import json
import shlex
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() answers it: an import would end in a traceback

from jax_mlm.cli.huge_pages import ask_for_huge_pages

if __name__ == "__main__":
    ask_for_huge_pages()

from jax_mlm.cli.command import Command
from jax_mlm.config import Json
from jax_mlm.errors import UserError
from jax_mlm.signals import Stopped, number_of
from jax_mlm.train.finetune_options import EXAMPLES, GROUPS, SEEDS_FILE, FinetuneConfig, defaults

if TYPE_CHECKING:
    from jax_mlm.train.finetuning import Plan

Stopping = Callable[[], AbstractContextManager[Callable[[], int]]]


def run(config: FinetuneConfig) -> None:
    """Fine-tune, and print the scores; the last line on stdout is the run directory."""
    from jax_mlm.parallel.stop import stop_request  # JAX is imported once the command line is known to be valid
    from jax_mlm.report.scores import print_scores

    directory, scores = finetune(config, stop_request)
    if config.json:
        print(json.dumps(scores, ensure_ascii=False))
        return
    print(f"{scores['of']}: {scores['file']}, {scores['examples']:,} examples, step {scores['step']:,}")
    print_scores(scores)
    for seed in scores.get("seeds", ()):
        print(f"  seed {seed['seed']}: {scores['metric']} {seed['score']:.4f} (when chosen: {seed['choosing']:.4f})")
    if "mean" in scores:
        print(f"  mean of {len(scores['seeds'])} seeds: {scores['mean']:.4f} ± {scores['deviation']:.4f}")
    print(directory)


def finetune(config: FinetuneConfig, stopping: Stopping | None = None) -> tuple[Path, Json]:
    """Fine-tune with each seed and score the best checkpoint; return the run directory and the scores.

    Raises:
        UserError: the options or the files are wrong, before anything is written.
        KeyboardInterrupt: somebody asked to stop; the state is saved.
    """
    from jax_mlm.train.finetuning import plan

    config = replace(config, out=config.out or _free(config))
    if config.seeds == 1:
        return _trained(plan(config), stopping)
    return _best_of(config, stopping)


def _free(config: FinetuneConfig) -> str:
    first = Path("runs") / f"{Path(config.init).resolve().name}-{config.task}"
    found, number = first, 2
    while found.exists():
        found, number = first.with_name(f"{first.name}-{number}"), number + 1
    return str(found)


def _trained(plan: Plan, stopping: Stopping | None) -> tuple[Path, Json]:
    """Train one seed to its end, and write the scores of its best checkpoint."""
    from functools import partial

    from jax_mlm.evals.answers import always, predicted, worst
    from jax_mlm.evals.labelled import best_first
    from jax_mlm.report.figures import draw
    from jax_mlm.report.scores import scores_json, write_scores
    from jax_mlm.run.checkpoint import load_params
    from jax_mlm.run.log import read_metrics
    from jax_mlm.train.finetuning import set_up_plan
    from jax_mlm.train.loop import train

    begin = partial(set_up_plan, plan)
    directory = train(plan.config, stopping, set_up=begin) if stopping else train(plan.config, set_up=begin)
    step, params = load_params(directory, "best")
    options, task = plan.options, plan.task
    examples = plan.report or plan.choosing.examples
    file = (options.test or options.valid) if plan.report else options.data
    laid, logits = predicted(plan.config, task, plan.data.tokenizer, params, examples)
    loss, scores = laid.measured(task, logits)
    valid = [line for line in read_metrics(directory) if line["kind"] == "valid"]
    chosen = min(valid, key=lambda line: (line["step"] != step, best_first(line, task.metric), line["step"]))
    found: Json = {
        "metric": task.metric,
        "step": step,
        "of": "examples that chose nothing" if plan.report else "the part of --data that chose the checkpoint",
        **scores_json(file, len(examples), loss.loss, scores, task.labels),
        "choosing": {"step": chosen["step"], task.metric: chosen[task.metric]},
        "seed": options.seed,
    }
    if (answer := always(task, laid, logits)) is not None:
        print(f"warning: every prediction is {answer!r}: try another --lr, more --epochs or --seeds", file=sys.stderr)
    write_scores(directory, {**found, "worst": worst(task, laid, logits)})
    draw(directory)
    for remark in laid.remarks if plan.report else ():
        print(remark, file=sys.stderr)
    return directory, found


def _best_of(config: FinetuneConfig, stopping: Stopping | None) -> tuple[Path, Json]:
    """Train every seed in a run directory of its own; the best one, by the examples that choose, becomes the run."""
    from jax_mlm.evals.labelled import best_first
    from jax_mlm.files import discard, make_folder, write_atomically
    from jax_mlm.report.scores import read_scores, write_scores
    from jax_mlm.run.checkpoint import FOLDER
    from jax_mlm.run.directory import RUN_FILE
    from jax_mlm.train.finetuning import plan

    out = Path(config.out)
    if not config.resume and out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} exists already: continue it with --resume, or choose another --out")
    make_folder(out, "--out")
    write_atomically(out / SEEDS_FILE, json.dumps(asdict(replace(config, resume=False, json=False)), indent=2) + "\n")
    seeds = [config.seed + i for i in range(config.seeds)]
    found: list[Json] = []
    for seed in seeds:
        directory = out / f"seed-{seed}"
        before = read_scores(directory) if config.resume else None
        if before is None:
            one = replace(config, seed=seed, seeds=1, out=str(directory), resume=(directory / RUN_FILE).is_file())
            print(f"seed {seed}", file=sys.stderr)
            try:
                before = _trained(plan(one), stopping)[1]
            except KeyboardInterrupt as stop:
                again = f"python -m jax_mlm.finetune --resume --out {shlex.quote(str(out))}"
                raise Stopped(number_of(stop), f"stopped at seed {seed}; continue with: {again}") from None
        found.append({name: value for name, value in before.items() if name != "worst"})
    metric = found[0]["metric"]
    best = min(range(len(seeds)), key=lambda i: best_first(found[i]["choosing"], metric))
    values = [each[metric] for each in found]
    each_seed = [
        {"seed": seed, "score": each[metric], "choosing": each["choosing"][metric]}
        for seed, each in zip(seeds, found, strict=True)
    ]
    for i, seed in enumerate(seeds):
        if i != best:
            discard(out / f"seed-{seed}" / FOLDER)  # the others keep their figures, not their weights
    scores = {
        **found[best],
        "seeds": each_seed,
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values),
    }
    kept = out / f"seed-{seeds[best]}"
    write_scores(kept, {**(read_scores(kept) or {}), **scores})
    return kept, scores


COMMAND = Command("python -m jax_mlm.finetune", FinetuneConfig, run, EXAMPLES, defaults, groups=GROUPS)
main: Callable[[Sequence[str] | None], int] = COMMAND.main

if __name__ == "__main__":
    sys.exit(COMMAND.main())
