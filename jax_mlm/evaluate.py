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
from jax_mlm.errors import UserError
from jax_mlm.run.directory import read_run


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate a run on text it has not seen: loss, accuracy and perplexity under fixed masks."""

    run: Path = field(metadata={"positional": "RUN"})
    """The run directory."""
    data: tuple[str, ...] = ()
    """Text to evaluate on: files, folders or globs; - is standard input."""
    json: bool = False
    """Print one JSON object."""
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
    trained = read_run(config.run)
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


EXAMPLES = """examples:
  python -m jax_mlm.evaluate runs/tiny --data held-out.txt --json
  python -m jax_mlm.evaluate runs/tiny --data sentences.txt --pll"""

COMMAND = Command("python -m jax_mlm.evaluate", EvaluateConfig, run, EXAMPLES)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
