"""`python -m jax_mlm`: the map of the commands, and a second way to call them."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

from jax_mlm.cli.help import nearest
from jax_mlm.version import package_version

PROG = "python -m jax_mlm"
COMMANDS = {
    "train": "text becomes a tokenizer, a model and checkpoints in a run directory",
    "evaluate": "loss, accuracy and perplexity of a run on text it has not seen",
    "compare": "several runs side by side, in a table and as curves",
    "hf": "Hugging Face directories in and out",
}
MAP = f"""usage: {PROG}.COMMAND … or {PROG} COMMAND …

Pretrains masked language models in JAX.

commands:
{chr(10).join(f"  {name:<11} {text}" for name, text in COMMANDS.items())}

examples:
  {PROG}.train                                  the founding sentence, in seconds
  {PROG}.train --data my-text/ --budget 30m     your own text, half an hour

{PROG}.COMMAND --help shows its options and examples.
What was trained answers through python -m mlm_onnx, which shows a map like this."""


def main(argv: Sequence[str] | None = None) -> int:
    """Shows the map, or runs a command as if it had been called by its own name; the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    try:
        if name in ("-h", "--help"):
            print(MAP)
        elif name == "--version":
            print(f"jax_mlm {package_version('jax-mlm')}, jax {package_version('jax')}")
        elif name in COMMANDS:
            sys.argv = [f"{PROG}.{name}", *rest]
            runpy.run_module(f"jax_mlm.{name}", run_name="__main__", alter_sys=True)
        else:
            close = nearest(name, list(COMMANDS)) or f" Choose from {', '.join(COMMANDS)}."
            print(f"error: {name} is no command.{close}", file=sys.stderr)
            return 2
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
