"""`python -m jax_mlm.train`."""

from __future__ import annotations

import sys

from jax_mlm.cli.console import run_command
from jax_mlm.config import TrainConfig
from jax_mlm.parallel import hosts
from jax_mlm.report.live import Progress
from jax_mlm.report.outcome import print_next
from jax_mlm.train.loop import train
from jax_mlm.train.options import EXAMPLES, GROUPS, check_resumed, defaults


def main(config: TrainConfig) -> None:
    """Trains, and says what to type next; the last line on stdout is the run directory."""
    check_resumed(config)
    hosts.join(config.multi_host)
    with hosts.first_speaks():
        with Progress() as progress:
            run = train(config, progress)
        print_next(run, bool(config.data))
        print(run)


if __name__ == "__main__":
    sys.exit(run_command("python -m jax_mlm.train", TrainConfig, main, EXAMPLES, default=defaults, groups=GROUPS))
