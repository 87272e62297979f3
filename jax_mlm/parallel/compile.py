"""Ahead-of-time compilation, its cache, and the type that a run computes in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jax_mlm.config import TrainConfig
from jax_mlm.errors import is_out_of_memory, warn
from jax_mlm.files import cache_folder
from jax_mlm.parallel.cores import cores, multiplies_bf16


def resolved(config: TrainConfig) -> TrainConfig:
    """Return the configuration of a run with the type that it computes in, if that is left to the machine.

    Accelerators compute in bfloat16, and so do processors that multiply it, from JAX 0.12 on: its kernels use them.
    What an older version wrote of a run keeps the meaning that it had: float32 on CPU.
    """
    if config.dtype != "auto":
        return config
    fast = multiplies_bf16() and FAST_BF16 and not config.resume
    return replace(config, dtype="bfloat16" if jax.default_backend() != "cpu" or fast else "float32")


def compute_dtype(config: TrainConfig) -> DTypeLike:
    """Return the type that a run of this configuration computes in."""
    return jnp.dtype(resolved(config).dtype)


def compile_cache(config: TrainConfig) -> Path:
    """Return XLA's cache folder for this number of cores: on CPU a program is compiled for a fixed number of them.

    JAX's own key leaves them out: a program compiled for one core would run a fifth slower on all of them.
    """
    return cache_folder(config) / "xla" / f"{cores()}-cores"


@contextmanager
def mending_cache(folder: Path) -> Iterator[None]:
    """Report once, in a line, what JAX warns of its cache, and remove such entries: they are then compiled again.

    JAX leaves half an entry under its final name when a disk is full, and never replaces one.
    """
    said = False

    def show(message: Warning | str, *rest: Any) -> None:
        nonlocal said
        found = re.match(r"Error (reading|writing) persistent compilation cache entry for '(\w+)': (.*)", str(message))
        if found is None:
            before(message, *rest)
            return
        for entry in folder.glob(f"{found[2]}-*"):
            entry.unlink(missing_ok=True)
        if not said:
            warn(f"{folder}: {found[1]} a compiled program failed ({found[3]}); it was removed, and the run goes on")
        said = True

    with warnings.catch_warnings():
        before, warnings.showwarning = warnings.showwarning, show
        yield


FAST_BF16 = jax.__version_info__ >= (0, 12)
"""Whether JAX's kernels for CPU multiply bfloat16 with the processor's own instructions."""
CPU_OPTIONS: dict[str, str | bool] = (
    {"xla_cpu_prefer_vector_width": "512"} if FAST_BF16 else {"xla_cpu_experimental_ynn_fusion_type": ""}
)
"""XLA's options on CPU. From 0.12 on: vectors as wide as the processor has them, 2 % faster in float32 and 5 % in
bfloat16. Before, its newer kernels are turned off: 3 % (4×256 on two Xeon cores; see `benchmarks/README.md`)."""


def compiled_if_it_fits(
    lowered: jax.stages.Lowered, options: Mapping[str, Any] | None = None
) -> jax.stages.Compiled | None:
    """Compile, by default as for a run; return None where the compiler finds that a device has too little memory."""
    try:
        return compile_step(lowered) if options is None else lowered.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error) or "hbm" in str(error).lower():
            return None
        raise


def compile_step(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile ahead of time, so that nothing is recompiled while training."""
    if jax.default_backend() != "cpu":
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=CPU_OPTIONS)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # a jaxlib without that library
