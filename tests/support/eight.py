"""A program on eight simulated devices, in a process of its own: their number is fixed when JAX starts."""

from __future__ import annotations

import os
import subprocess
import sys

from support.paths import ROOT


def on_eight_devices(program: str, *arguments: str) -> bytes:
    """Run a program that may import from the tests; return what it wrote to stdout."""
    env = {**os.environ, "XLA_FLAGS": eight(os.environ["XLA_FLAGS"])}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=env, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def eight(flags: str) -> str:
    """Return XLA's flags with those for eight devices."""
    return f"{flags} --xla_force_host_platform_device_count=8"
