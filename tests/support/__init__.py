"""What several test files need. Test modules import from here, never from each other.

Importing it, which conftest.py does first, sets the session's environment: JAX on the CPU, and one cache for all tests
and all the processes they start. The workers of pytest-xdist inherit the cache of the process that starts them.
"""

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import jaxlib.version
import pytest

from jax_mlm.parallel.cores import cores

pytest.register_assert_rewrite("support.models", "support.runs", "support.servers")

CACHE = "JAX_MLM_TESTS_CACHE"


def quick_flags(version: tuple[int, ...]) -> str:
    """Return the flags with which this jaxlib compiles small models in half the time; an unknown flag ends a process.

    Measured on a training step of one layer: 10.7 → 4.4 s of processor time a process with jaxlib 0.10.2.
    """
    flags = ["--xla_backend_optimization_level=0"]
    if (0, 10) <= version < (0, 11):
        flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    return " ".join(flags)


QUICK = "" if os.environ.get("JAX_MLM_GOLDEN_BITS") == "1" else quick_flags(jaxlib.version.__version_info__)


def share_cache() -> None:
    """Give this session an empty cache, with the page's runtime from the user's own; delete it at the end."""
    own = Path(os.environ.get("JAX_MLM_CACHE") or Path.home() / ".cache" / "jax_mlm") / "web"
    cache = Path(tempfile.mkdtemp(prefix="jax-mlm-tests-"))
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    with suppress(OSError):  # a home that cannot be written: this session fetches the runtime for itself
        own.mkdir(parents=True, exist_ok=True)
        (cache / "web").symlink_to(own.resolve())
    os.environ |= {
        CACHE: str(cache),
        "JAX_MLM_CACHE": str(cache),
        "JAX_PLATFORMS": "cpu",
        # What took a fifth of a second to compile is kept: by default a second, which no small model takes.
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla" / f"{cores()}-cores"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
        # XLA's threads: the workers share the cores, and two threads each wait for one another.
        "NPROC": "1",
        # Half the time to compile. What .ci/run takes from the README and the wheels is optimised as for users.
        "XLA_FLAGS": " ".join(filter(None, [os.environ.get("XLA_FLAGS"), QUICK])),
    }


if CACHE not in os.environ:
    share_cache()
    # A hundred processes would compile the packages' source anew, where a container's image sets this.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
