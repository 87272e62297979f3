"""When memory runs out: one line that says which option helps, with its number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jax_mlm.config import TrainConfig
from jax_mlm.errors import UserError, first_line, is_out_of_memory
from jax_mlm.run.checkpoint import steps_of

TUNED = "finetune"
"""What a fine-tuning run has in place of a preset's name."""


@contextmanager
def memory_advice(config: TrainConfig, devices: int, run: Path) -> Iterator[None]:
    """Turn the end of memory, of the machine or of a device, into a UserError that says what to try.

    `devices` are those that compute different rows.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        steps = steps_of(run)
        kept = f"the last good checkpoint is of step {steps[-1]}" if steps else "there is no checkpoint yet"
        rows = config.batch // config.accumulate
        raise UserError(
            f"not enough memory for {rows} rows at a time ({first_line(error)}); {kept}: "
            f"{advice(config.batch, config.accumulate, devices, run, config.preset == TUNED)}"
        ) from error


def advice(batch: int, accumulate: int, devices: int, run: Path, tuned: bool = False) -> str:
    """Return what to try: more microbatches give the same gradient; if a row a device is left, fewer of them.

    A microbatch must divide over the devices. `tuned`: the run fine-tunes, by a command without --accumulate.
    """
    finer = (a for a in range(2 * accumulate, batch // devices + 1) if batch % (a * devices) == 0)
    if not tuned and (a := next(finer, None)) is not None:
        return f"try --accumulate {a}, with --resume --out {run} (the same gradient, {batch // a} rows at a time)"
    if (smaller := batch // 2 // devices * devices) > 0:
        return f"try a new run with --batch {smaller}" + ("" if tuned else f" --accumulate {smaller // devices}")
    return "try a new run with a smaller --length" + ("" if tuned else ", --width or --layers")
