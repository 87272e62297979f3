"""Measure a run on a text; `python -m jax_mlm.evaluate RUN --data FILE`."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() answers it: an import would end in a traceback

from jax_mlm.cli.command import Command
from jax_mlm.config import TaskConfig, TrainConfig
from jax_mlm.errors import UserError
from jax_mlm.run.directory import read_run, read_task


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a run on text it has not seen: loss, accuracy and perplexity under fixed masks."""

    run: Path = field(metadata={"positional": "RUN"})
    """The run directory."""
    data: tuple[str, ...] = ()
    """Text to evaluate on: files, folders or globs; - is standard input."""
    json: bool = False
    """Print one JSON object."""
    predictions: str = ""
    """Write the answers of a fine-tuned run to this file, a JSON line for each example with the fields of its row."""
    text: str = ""
    """The column of the text, for a fine-tuned run, where it differs from that of the training file."""
    pair: str = ""
    """The same of the second text of a pair."""
    label: str = ""
    """The same of the label."""
    pll: bool = False
    """Print the pseudo-log-likelihood of each document instead (each token hidden in turn)."""
    all_mask: bool = False
    """Show [MASK] at every target, instead of 80/10/10."""
    checkpoint: Literal["best", "latest"] = "best"
    """The checkpoint with the lowest validation loss, or the newest."""
    batch: int = 32
    """Rows computed at once; the figures do not depend on it."""


def run(config: EvaluateConfig) -> None:
    """Print the figures of one run on one text."""
    if not config.data:
        raise UserError("the run or --data is missing: python -m jax_mlm.evaluate RUN --data FILE")
    trained, task = read_run(config.run), read_task(config.run)
    if task is not None:
        _evaluate_task(config, trained, task)
        return
    if config.predictions:
        raise UserError(
            f"--predictions: {config.run} was not fine-tuned: train it with python -m jax_mlm.finetune first"
        )
    from jax_mlm.evals.text import evaluate_text, score_documents  # imports JAX: only for a valid command line
    from jax_mlm.run.checkpoint import load_params

    step, params = load_params(config.run, config.checkpoint)
    if config.pll:
        for scored in score_documents(config.run, trained, params, config.data, config.batch):
            if config.json:
                print(json.dumps(scored, ensure_ascii=False), flush=True)
            else:
                print(f"{scored['pll']:10.3f}  {scored['tokens']:5d} tokens  {scored['text']}", flush=True)
        return
    figures = evaluate_text(config.run, trained, params, config.data, config.batch, config.all_mask)
    result = {**figures, "step": step}
    if config.json:
        print(json.dumps(result))
        return
    masks = "all [MASK]" if config.all_mask else "80/10/10"
    print(f"{config.run}, step {step}: {result['targets']} targets (15 % masks, {masks}) of {result['tokens']} tokens")
    print(f"loss {result['loss']:.4f}   accuracy {result['accuracy']:.4f}   perplexity {result['perplexity']:.2f}")


def _evaluate_task(config: EvaluateConfig, trained: TrainConfig, task: TaskConfig) -> None:
    """Print the scores of a fine-tuned run on labelled examples, or only write predictions if there are no labels."""
    if config.pll or config.all_mask or len(config.data) != 1:
        raise UserError(
            f"{config.run} was fine-tuned to {task.kind}: give one file with --data, and no --pll or --all-mask"
        )
    from jax_mlm.evals.files import evaluate_file, write_predictions
    from jax_mlm.report.scores import print_scores, scores_json

    found = evaluate_file(
        config.run, trained, task, Path(config.data[0]), config.checkpoint, (config.text, config.pair, config.label)
    )
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    if config.predictions:
        write_predictions(Path(config.predictions), task, found)
    if found.measured is None:
        if not config.predictions:
            raise UserError(f"--data {config.data[0]} has no labels: give --predictions FILE for the answers")
        print(f"{len(found.laid.examples)} predictions in {config.predictions}; the file has no labels to compare with")
        return
    loss, scores = found.measured
    figures = {**scores_json(config.data[0], found.labelled, loss.loss, scores, task.labels), "step": found.step}
    if config.json:
        print(json.dumps(figures, ensure_ascii=False))
        return
    print(f"{config.run}, step {found.step}: {config.data[0]}, {found.labelled:,} examples with labels")
    print_scores(figures)


EXAMPLES = """examples:
  python -m jax_mlm.evaluate runs/tiny --data held-out.txt --json
  python -m jax_mlm.evaluate runs/tiny --data sentences.txt --pll
  python -m jax_mlm.evaluate runs/tiny-classify --data test.tsv --predictions answers.jsonl"""

COMMAND = Command("python -m jax_mlm.evaluate", EvaluateConfig, run, EXAMPLES)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
