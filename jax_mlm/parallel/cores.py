"""What the processor has; free of JAX, which data preparation does not need."""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BF16 = {"amx_bf16", "avx512_bf16", "bf16"}
"""What Linux calls the instructions that multiply bfloat16: of x86 the first two, of Arm the last."""


def cores() -> int:
    """Count the cores that the scheduler gives this process; all of them if the platform does not report it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def multiplies_bf16() -> bool:
    """Return whether the processor has instructions for bfloat16 products; False if the platform does not report it."""
    try:
        flags = CPUINFO.read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not BF16.isdisjoint(flags)
