"""`python -m jax_mlm.train`."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main() answers it: an import would end in a traceback

from jax_mlm.cli.huge_pages import ask_for_huge_pages

if __name__ == "__main__":
    ask_for_huge_pages()

from jax_mlm.cli.command import Command
from jax_mlm.config import TrainConfig
from jax_mlm.train.options import EXAMPLES, GROUPS, defaults, shown


def run(config: TrainConfig) -> None:
    """Train, and print what to type next; the last line on stdout is the run directory."""
    from jax_mlm.parallel import hosts  # JAX is imported once the command line is known to be valid
    from jax_mlm.parallel.stop import stop_request
    from jax_mlm.report.outcome import print_next
    from jax_mlm.train.loop import train

    with hosts.only_first_prints():
        directory = train(config, stopping=stop_request)
        print_next(directory, bool(config.data))
        print(directory)


COMMAND = Command("python -m jax_mlm.train", TrainConfig, run, EXAMPLES, defaults, shown, GROUPS)
main = COMMAND.main

if __name__ == "__main__":
    sys.exit(main())
