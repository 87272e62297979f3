"""How many processor cores this process may use; without jax, which data preparation does not need."""

from __future__ import annotations

import os


def cores() -> int:
    """Count the cores that the scheduler gives this process; all of them where it does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
