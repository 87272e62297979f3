"""Several runs side by side; `python -m jax_mlm.compare RUN RUN… [--out compare.html]`."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() answers it: an import would end in a traceback

from jax_mlm.cli.command import Command
from jax_mlm.errors import UserError
from jax_mlm.files import write_atomically


@dataclass(frozen=True)
class CompareConfig:
    """Compare runs: their figures, the options in which they differ, and their curves."""

    runs: tuple[Path, ...] = field(metadata={"positional": "RUN …"})
    """Run directories, two or more."""
    out: str = ""
    """Overlay the curves in this file: .html or .svg."""
    json: bool = False
    """Print one JSON object instead of the tables."""


def run(config: CompareConfig) -> None:
    """Print the tables; with --out, the last line on stdout is the file written."""
    out = Path(config.out)
    if config.out and out.suffix not in (".html", ".svg"):
        raise UserError(f"--out {out}: give a name that ends in .html or .svg")
    if config.out and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    from jax_mlm.report.comparison import compare, comparison_page, comparison_picture, print_tables

    runs, rows, different = compare(config.runs)
    if config.json:
        print(json.dumps({"runs": rows, "differences": different}, ensure_ascii=False))
    else:
        print_tables(rows, different)
    if out.suffix == ".html":
        write_atomically(out, comparison_page(runs, rows, different))
    elif out.suffix == ".svg":
        write_atomically(out, comparison_picture([row["run"] for row in rows], runs))
    if config.out and not config.json:
        print(out)


EXAMPLES = """examples:
  python -m jax_mlm.compare runs/tiny runs/tiny-2
  python -m jax_mlm.compare runs/* --out compare.html"""

COMMAND = Command("python -m jax_mlm.compare", CompareConfig, run, EXAMPLES)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
