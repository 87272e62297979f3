"""`python -m jax_mlm.hf import|export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jax_mlm.cli.console import run_command
from jax_mlm.cli.help import nearest
from jax_mlm.hf.card import parameters
from jax_mlm.hf.directory import export_hf, import_hf


@dataclass(frozen=True)
class ImportConfig:
    """Makes a run directory of a Hugging Face model, to evaluate, convert or train on."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="HF_DIR")]
    """The directory with config.json, model.safetensors and the tokenizer."""
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory to write."""
    family: str = ""
    """bert, roberta, albert, distilbert or modernbert, where config.json does not say or says otherwise."""
    tokenizer: str = ""
    """A tokenizer.json to take instead of the directory's own."""


@dataclass(frozen=True)
class ExportConfig:
    """Writes a run's model in Hugging Face's layout: config.json, model.safetensors, tokenizer and model card."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="HF_DIR")]
    """The directory to write."""
    checkpoint: Literal["best", "latest"] = "best"
    """The checkpoint with the lowest validation loss, or the newest."""


def import_command(config: ImportConfig) -> None:
    """Imports; the last line on stdout is the run directory."""
    imported = import_hf(
        config.source, config.run, config.family or None, Path(config.tokenizer) if config.tokenizer else None
    )
    for remark in imported.remarks:
        print(remark, file=sys.stderr)
    m = imported.model
    print(f"{m.family}, {m.layers} layers of width {m.width}, {parameters(imported.params):,} parameters")
    print(config.run)


def export_command(config: ExportConfig) -> None:
    """Exports; the last line on stdout is the directory."""
    step = export_hf(config.run, config.target, config.checkpoint)
    print(f"step {step} of {config.run}; fill in the licence in {config.target}/README.md before you publish it")
    print(config.target)


IMPORT_EXAMPLES = """examples:
  python -m jax_mlm.hf import bert-base-uncased/ runs/bert
  python -m jax_mlm.hf import old-checkpoint/ runs/old --family bert"""
EXPORT_EXAMPLES = """examples:
  python -m jax_mlm.hf export runs/tiny my-model/
  python -m jax_mlm.hf export runs/tiny my-model/ --checkpoint latest"""
USAGE = f"""usage: python -m jax_mlm.hf import HF_DIR RUN [--family NAME] [--tokenizer FILE]
       python -m jax_mlm.hf export RUN HF_DIR [--checkpoint best|latest]

Hugging Face directories in and out, without torch.

{IMPORT_EXAMPLES}
{EXPORT_EXAMPLES.removeprefix("examples:" + chr(10))}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `import` or `export`; the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    match argv:
        case ["import", *rest]:
            return run_command("python -m jax_mlm.hf import", ImportConfig, import_command, IMPORT_EXAMPLES, rest)
        case ["export", *rest]:
            return run_command("python -m jax_mlm.hf export", ExportConfig, export_command, EXPORT_EXAMPLES, rest)
        case [] | ["-h" | "--help", *_]:
            print(USAGE)
            return 0
    close = nearest(argv[0], ["import", "export"]) or " Give import or export."
    print(f"error: {argv[0]} is no command of jax_mlm.hf.{close}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
