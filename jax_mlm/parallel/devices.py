"""The available devices, described for people and for `run.json`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax


def describe_devices() -> str:
    """Return one line: backend and devices."""
    devices = jax.devices()
    kind = devices[0].device_kind
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"backend {jax.default_backend()}, {len(devices)} × {kind}{hosts}"


def describe_machine() -> dict[str, str | int]:
    """Return what `run.json` records about the machine."""
    device = jax.devices()[0]
    counts = {"devices": jax.device_count(), "hosts": jax.process_count()}
    return {"backend": jax.default_backend(), "kind": device.device_kind, **counts}


def limit_of_device() -> int | None:
    """Return the bytes that JAX may take of a device's memory; None where the device does not tell, as a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def memory_of_device() -> int:
    """Return the bytes of one device's memory: this machine's, where it computes on the CPU."""
    return limit_of_device() or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def warn_of_unused_accelerator() -> None:
    """Warn on stderr when the machine has an NVIDIA or TPU device that this JAX cannot use."""
    if jax.default_backend() != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return
    if Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists():
        name, extra = "an NVIDIA GPU", "cuda"
    elif any(Path("/dev").glob("accel[0-9]*")) or (Path("/dev/vfio/0").exists() and "TPU_NAME" in os.environ):
        name, extra = "a TPU", "tpu"
    else:
        return
    print(f"warning: this machine has {name}, but JAX runs on the CPU: pip install 'jax-mlm[{extra}]'", file=sys.stderr)
