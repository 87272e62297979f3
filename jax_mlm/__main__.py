"""`python -m jax_mlm` and `jax-mlm`: the map of the commands, and a second way to call them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from jax_mlm.cli.command import run_one_of

PROG = "python -m jax_mlm"
COMMANDS = {
    "train": "text becomes a tokenizer, a model and checkpoints in a run directory",
    "evaluate": "loss, accuracy and perplexity of a run on text it has not seen",
    "compare": "several runs side by side, in a table and as curves",
    "hf": "Hugging Face directories in and out",
}
MAP = f"""usage: {PROG}.COMMAND …, {PROG} COMMAND … or jax-mlm COMMAND …

Pretrains masked language models in JAX.

commands:
{chr(10).join(f"  {name:<11} {text}" for name, text in COMMANDS.items())}

examples:
  {PROG}.train                                  the founding sentence, in seconds
  {PROG}.train --data my-text/ --budget 30m     your own text, half an hour

{PROG}.COMMAND --help shows its options and examples.
What was trained answers through python -m mlm_onnx, which shows a map like this."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the map, or run a command as if it had been called by its own name; return the exit status."""
    return run_one_of({name: load(name) for name in COMMANDS}, MAP, argv)


def load(name: str) -> Callable[[Sequence[str]], int]:
    """Return a command that is imported when it is called."""
    module = f"jax_mlm.{name}.__main__" if name in ("train", "hf") else f"jax_mlm.{name}"
    return lambda argv: importlib.import_module(module).main(argv)


if __name__ == "__main__":
    sys.exit(main())
