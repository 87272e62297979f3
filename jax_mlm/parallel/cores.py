"""How many processor cores this process may use; free of JAX, which data preparation does not need."""

from __future__ import annotations

import os


def cores() -> int:
    """Count the cores that the scheduler gives this process; all of them if the platform does not report it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
