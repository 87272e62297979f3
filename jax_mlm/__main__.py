"""`python -m jax_mlm` and `jax-mlm`: the map of the commands, and a second way to call them."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Sequence

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() answers it: an import would end in a traceback

from jax_mlm.cli.command import run_one_of
from jax_mlm.cli.huge_pages import ask_for_huge_pages

PROG = "python -m jax_mlm"
COMMANDS = {
    "train": "turn text into a tokenizer, a model and checkpoints in a run directory",
    "finetune": "classify texts or tag words with a pretrained encoder",
    "evaluate": "measure a run's loss, accuracy and perplexity on text it has not seen",
    "compare": "compare several runs, in a table and as curves",
    "plan": "tell what a run would take on devices that are not here",
    "hf": "import and export Hugging Face models",
}
COMPUTE = ("train", "finetune", "evaluate")
MAP = f"""usage: {PROG}.COMMAND …, {PROG} COMMAND … or jax-mlm COMMAND …

Pretrain masked language models in JAX.

commands:
{chr(10).join(f"  {name:<11} {text}" for name, text in COMMANDS.items())}

examples:
  {PROG}.train                                  the founding sentence, in seconds
  {PROG}.train --data my-text/ --budget 30m     your own text, half an hour

{PROG}.COMMAND --help shows its options and examples.
To convert and query a trained model: python -m mlm_onnx --help"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the map, or run a command as if it had been called by its own name; return the exit status."""
    if argv is None and sys.argv[1:2] and sys.argv[1] in COMPUTE:
        ask_for_huge_pages()
    return run_one_of({name: load(name) for name in COMMANDS}, MAP, argv)


def load(name: str) -> Callable[[Sequence[str]], int]:
    """Return a command that is imported when it is called."""
    module = f"jax_mlm.{name}.__main__" if name in ("train", "hf") else f"jax_mlm.{name}"
    return lambda argv: importlib.import_module(module).main(argv)


if __name__ == "__main__":
    sys.exit(main())
