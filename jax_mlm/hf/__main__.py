"""`python -m jax_mlm.hf import|export`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() answers it: an import would end in a traceback

from jax_mlm.cli.command import Command, run_one_of


@dataclass(frozen=True)
class ImportConfig:
    """Turn a Hugging Face model into a run directory, to evaluate, convert or train further."""

    source: Path = field(metadata={"positional": "HF_DIR"})
    """The directory with config.json, model.safetensors (or Flax's flax_model.msgpack) and the tokenizer."""
    run: Path = field(metadata={"positional": "RUN"})
    """The run directory to write."""
    family: str = ""
    """bert, roberta, xlm-roberta, camembert, albert, distilbert, modernbert or esm, where config.json does not say."""
    tokenizer: str = ""
    """A tokenizer.json to take instead of the directory's own."""
    pair: str = ""
    """For a classifier of pairs: the column of the second text in files to evaluate; config.json does not name it."""


@dataclass(frozen=True)
class ExportConfig:
    """Write a run's model in Hugging Face's layout: config.json, model.safetensors, tokenizer and model card."""

    run: Path = field(metadata={"positional": "RUN"})
    """The run directory."""
    target: Path = field(metadata={"positional": "HF_DIR"})
    """The directory to write."""
    checkpoint: Literal["best", "latest"] = "best"
    """The checkpoint with the lowest validation loss, or the newest."""


def run_import(config: ImportConfig) -> None:
    """Import; the last line on stdout is the run directory."""
    from jax_mlm.hf.card import parameters
    from jax_mlm.hf.directory import import_hf

    tokenizer = Path(config.tokenizer) if config.tokenizer else None
    imported = import_hf(config.source, config.run, config.family or None, tokenizer, config.pair)
    for remark in imported.remarks:
        print(remark, file=sys.stderr)
    m = imported.model
    print(f"{m.family}, {m.layers} layers of width {m.width}, {parameters(imported.params):,} parameters")
    print(config.run)


def run_export(config: ExportConfig) -> None:
    """Export; the last line on stdout is the directory."""
    from jax_mlm.hf.directory import export_hf

    step = export_hf(config.run, config.target, config.checkpoint)
    print(f"step {step} of {config.run}; fill in the licence in {config.target}/README.md before you publish it")
    print(config.target)


IMPORT_EXAMPLES = """examples:
  python -m jax_mlm.hf import bert-base-uncased/ runs/bert
  python -m jax_mlm.hf import old-checkpoint/ runs/old --family bert
  python -m jax_mlm.hf import bert-mnli/ runs/mnli --pair hypothesis"""
EXPORT_EXAMPLES = """examples:
  python -m jax_mlm.hf export runs/tiny my-model/
  python -m jax_mlm.hf export runs/tiny my-model/ --checkpoint latest"""
USAGE = f"""usage: python -m jax_mlm.hf import HF_DIR RUN [--family NAME] [--tokenizer FILE]
         [--pair COLUMN]
       python -m jax_mlm.hf export RUN HF_DIR [--checkpoint best|latest]

Hugging Face directories in and out, without torch.

{IMPORT_EXAMPLES}
{EXPORT_EXAMPLES.removeprefix("examples:" + chr(10))}"""


COMMANDS = {
    "import": Command("python -m jax_mlm.hf import", ImportConfig, run_import, IMPORT_EXAMPLES),
    "export": Command("python -m jax_mlm.hf export", ExportConfig, run_export, EXPORT_EXAMPLES),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `import` or `export`; return the exit status."""
    return run_one_of({name: command.main for name, command in COMMANDS.items()}, USAGE, argv)


if __name__ == "__main__":
    sys.exit(main())
