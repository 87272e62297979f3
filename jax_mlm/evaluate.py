"""Measure a run on a text; `python -m jax_mlm.evaluate RUN --data FILE`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() answers it: an import would end in a traceback

from jax_mlm.cli.huge_pages import ask_for_huge_pages

if __name__ == "__main__":
    ask_for_huge_pages()

from jax_mlm.cli.command import Command
from jax_mlm.config import TaskConfig, TrainConfig, check_ranges
from jax_mlm.errors import UserError
from jax_mlm.run.directory import TOKENIZER_FILE, read_run, read_task

if TYPE_CHECKING:
    from jax_mlm.evals.likelihood import Method


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a run on text it has not seen: loss, accuracy and perplexity under fixed masks, or minimal pairs."""

    run: Path = field(metadata={"positional": "RUN"})
    """The run directory."""
    data: tuple[str, ...] = ()
    """Text to evaluate on: files, folders or globs; - is standard input."""
    pairs: tuple[str, ...] = ()
    """Minimal pairs instead: JSON lines with sentence_good and sentence_bad, as BLiMP's, in files or folders."""
    json: bool = False
    """Print one JSON object."""
    predictions: str = ""
    """Write the answers of a fine-tuned run, or the score of each text or pair, to this file of JSON lines."""
    text: str = ""
    """The column of the text, for a fine-tuned run, where it differs from that of the training file."""
    pair: str = ""
    """The same of the second text of a pair."""
    label: str = ""
    """The same of the label."""
    pll: Literal["", "original", "word-l2r", "both"] = field(default="", metadata={"bare": "original"})
    """Print the pseudo-log-likelihood of each document instead, each token hidden in turn, alone (original, which --pll
    stands for) or with the later ones of its word (word-l2r). Pairs are judged by both unless one is named."""
    all_mask: bool = False
    """Show [MASK] at every target, instead of 80/10/10."""
    checkpoint: Literal["best", "latest"] = "best"
    """The checkpoint with the lowest validation loss, or the newest."""
    batch: int = 32
    """Rows computed at once; the figures do not depend on it."""

    def __post_init__(self) -> None:
        check_ranges(self, {"batch": (1, 1 << 24)})


def run(config: EvaluateConfig) -> None:
    """Print the figures of one run on one text."""
    if bool(config.data) == bool(config.pairs):
        wrong = "give either --data or --pairs, not both" if config.data else "the run or --data is missing"
        raise UserError(f"{wrong}: python -m jax_mlm.evaluate RUN --data FILE, or RUN --pairs FILE")
    trained, task = read_run(config.run), read_task(config.run)
    if task is not None:
        _evaluate_task(config, trained, task)
        return
    _refuse_columns(config, "was not fine-tuned, so no columns are read")
    if config.all_mask and (config.pll or config.pairs):
        raise UserError("--all-mask does not go with --pll or --pairs, which show [MASK] at every target anyway")
    if config.pairs:
        _evaluate_pairs(config, trained)
        return
    if config.pll:
        _score_documents(config, trained)
        return
    if config.predictions:
        raise UserError(
            f"--predictions: {config.run} was not fine-tuned, so there are none without --pll or --pairs: "
            "train it with python -m jax_mlm.finetune first, or give --pll"
        )
    from jax_mlm.evals.text import evaluate_text  # imports JAX: only for a valid command line
    from jax_mlm.run.checkpoint import load_params

    step, params = load_params(config.run, config.checkpoint)
    figures = evaluate_text(config.run, trained, params, config.data, config.batch, config.all_mask)
    result = {**figures, "step": step}
    if config.json:
        print(json.dumps(result))
        return
    masks = "all [MASK]" if config.all_mask else "80/10/10"
    print(f"{config.run}, step {step}: {result['targets']} targets (15 % masks, {masks}) of {result['tokens']} tokens")
    print(f"loss {result['loss']:.4f}   accuracy {result['accuracy']:.4f}   perplexity {result['perplexity']:.2f}")


def _refuse_columns(config: EvaluateConfig, why: str) -> None:
    if config.text or config.pair or config.label:
        raise UserError(f"{config.run} {why}: leave out --text, --pair, --label")


def _methods(pll: str) -> Sequence[Method]:
    """Return the ways to hide that --pll names."""
    every: Sequence[Method] = ("original", "word-l2r")
    return every if pll == "both" else [method for method in every if method == pll]


def _score_documents(config: EvaluateConfig, trained: TrainConfig) -> None:
    """Print the score of each document, or write them to --predictions; then the figures of the whole text.

    With --json, standard output holds a line for each document, as it did before there were figures of the whole: then
    these are in words, on standard error.
    """
    from jax_mlm.evals.files import check_predictions, write_lines
    from jax_mlm.evals.text import Corpus, score_documents
    from jax_mlm.report.likelihood import corpus_in_words, document_line
    from jax_mlm.run.checkpoint import load_params

    if config.predictions:
        check_predictions(Path(config.predictions))
    step, params = load_params(config.run, config.checkpoint)
    corpus, kept = Corpus(), []
    for scored in score_documents(config.run, trained, params, config.data, config.batch, _methods(config.pll)):
        corpus = corpus.plus(scored)
        if config.predictions:
            kept.append(scored.to_json())
        else:
            line = json.dumps(scored.to_json(), ensure_ascii=False) if config.json else document_line(scored)
            print(line, flush=True)
    if not corpus.documents:
        raise UserError(f"--data {' '.join(config.data)}: no text in it")
    if config.predictions:
        write_lines(Path(config.predictions), kept)
    figures = {**corpus.figures(), "step": step}
    if config.json and config.predictions:
        print(json.dumps(figures))
    else:
        print(f"{config.run}, {corpus_in_words(figures)}", file=sys.stderr if config.json else sys.stdout)


def _evaluate_pairs(config: EvaluateConfig, trained: TrainConfig) -> None:
    """Print the share of minimal pairs whose good sentence is the likelier one."""
    from jax_mlm.data.tokenizer import load_tokenizer
    from jax_mlm.evals.files import check_predictions, write_lines
    from jax_mlm.evals.likelihood import CHARACTERS_A_TOKEN, make_scorer, tokens_at_once
    from jax_mlm.evals.pairs import judge, pair_figures, pair_lines, read_pairs
    from jax_mlm.report.likelihood import counting, print_pairs
    from jax_mlm.run.checkpoint import load_params

    pairs = read_pairs(config.pairs)
    if config.predictions:
        check_predictions(Path(config.predictions))
    step, params = load_params(config.run, config.checkpoint)
    methods, at_once = _methods(config.pll or "both"), tokens_at_once(config.batch)
    tokenizer = load_tokenizer(config.run / TOKENIZER_FILE)
    score = make_scorer(tokenizer, trained.model, params, methods, at_once)
    judged = list(counting(judge(score, pairs, at_once * CHARACTERS_A_TOKEN), len(pairs), "pairs"))
    if config.predictions:
        write_lines(Path(config.predictions), pair_lines(judged, methods))
    figures = {**pair_figures(judged, methods), "step": step}
    if config.json:
        print(json.dumps(figures, ensure_ascii=False))
        return
    print(f"{config.run}, step {step}: {' '.join(config.pairs)}")
    print_pairs(figures)


def _evaluate_task(config: EvaluateConfig, trained: TrainConfig, task: TaskConfig) -> None:
    """Print the scores of a fine-tuned run on labelled examples, or only write predictions if there are no labels."""
    if config.pll or config.pairs or config.all_mask or len(config.data) != 1:
        raise UserError(
            f"{config.run} was fine-tuned to {task.kind}: give one file with --data, no --pairs, --pll or --all-mask"
        )
    if task.kind == "tag":
        _refuse_columns(config, "was fine-tuned to tag, and reads whole files of words or entities")
    from jax_mlm.evals.files import evaluate_file, write_predictions
    from jax_mlm.report.scores import print_scores, scores_json

    columns, predictions = (config.text, config.pair, config.label), config.predictions
    found = evaluate_file(config.run, trained, task, config.data[0], config.checkpoint, columns, predictions)
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    if predictions:
        write_predictions(Path(predictions), task, found)
    if found.measured is None:
        count = len(found.laid.examples)
        figures = {"file": config.data[0], "examples": 0, "predictions": count, "step": found.step}
        words = f"{count} predictions in {predictions}; the file has no labels to compare with"
        print(json.dumps(figures, ensure_ascii=False) if config.json else words)
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
  python -m jax_mlm.evaluate runs/tiny --pairs blimp/data --pll both
  python -m jax_mlm.evaluate runs/tiny-classify --data test.tsv --predictions answers.jsonl"""

COMMAND = Command("python -m jax_mlm.evaluate", EvaluateConfig, run, EXAMPLES)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
