"""Ask Linux for huge pages, which only a process that starts can do."""

from __future__ import annotations

import os
import sys

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def ask_for_huge_pages() -> None:
    """Start this process anew, once, with glibc told to ask for huge pages; elsewhere than on glibc do nothing.

    XLA allocates the temporaries of a step at each step, hundreds of megabytes: in pages of 4 kB, a fifth of the step
    goes into faults. Whoever has set this tunable already is left alone. (malloc's tunables: glibc manual, 39.3.)
    """
    tunables = os.environ.get(VARIABLE, "")
    if SETTING in tunables or not _has_glibc() or not sys.executable:
        return
    os.environ[VARIABLE] = ":".join(filter(None, (tunables, f"{SETTING}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _has_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):  # another platform, or another C library
        return False
