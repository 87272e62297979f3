"""Devices: an accelerator that lies idle is pointed out, and a batch that does not divide is refused."""

from pathlib import Path

import jax
import pytest

from jax_mlm.errors import UserError
from jax_mlm.parallel import mesh as sharding
from jax_mlm.parallel.devices import warn_of_unused_accelerator


@pytest.mark.parametrize(("device", "extra"), [("/dev/nvidiactl", "cuda"), ("/dev/accel0", "tpu"), (None, None)])
def test_an_unused_accelerator_is_pointed_out(monkeypatch, capsys, device, extra):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == device)
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([device] if device and "accel" in device else []))
    warn_of_unused_accelerator()
    error = capsys.readouterr().err
    assert (f"jax-mlm[{extra}]" in error) if device else not error


def test_no_warning_when_the_cpu_was_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(Path, "exists", lambda self: True)
    warn_of_unused_accelerator()
    assert not capsys.readouterr().err


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda *_: [None] * 4)
    with pytest.raises(UserError, match="--batch 10"):
        sharding.make_mesh(10, 1)
    with pytest.raises(UserError, match="multiple of 8"):
        sharding.make_mesh(12, 2)
