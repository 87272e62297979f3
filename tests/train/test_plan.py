"""`python -m jax_mlm.plan`: the step of a run, compiled for devices that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from support.paths import ROOT

from jax_mlm.parallel.topology import read_slice
from jax_mlm.plan import PlanConfig, largest_batch, made, told, training
from jax_mlm.plan import main as plan_line

SMALL = ("--preset", "sentence")


def planned(*options: str) -> dict[str, Any]:
    """Return what `--json` prints, in a process of its own: the devices of a process are chosen once."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    line = [sys.executable, "-m", "jax_mlm.plan", *options, "--json"]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_eight_devices_that_are_not_here() -> None:
    """The state is what theory says, and a part of it is on each device."""
    (found,) = planned("--topology", "a100:8", *SMALL, "--mesh", "fsdp=8")["plans"]
    assert found["mesh"] == "fsdp=8"
    assert found["compiled_for"] == "8 simulated devices of a CPU"
    assert found["fits"]
    assert found["batch"] % 8 == 0
    assert found["accumulate"] == 1
    train = training(PlanConfig(preset="sentence"))
    width, vocabulary = train.model.width, train.model.vocab_size
    matrices = train.model.layers * (4 * width * width + 3 * width * train.model.ff_width) + width * width
    state = 3 * 4 * (matrices + vocabulary * width) / 8  # the parameters and two moments, a part on each device
    assert state < found["bytes"]["state"] < 1.1 * state
    assert found["bytes"]["all"] == found["bytes"]["state"] + found["bytes"]["step"]
    assert found["largest_batch"] > found["batch"]
    assert {each["axes"] for each in found["exchanges"]} == {"fsdp"}
    assert {"all-gather", "all-reduce"} & {each["kind"] for each in found["exchanges"]}
    assert found["compute_seconds"] == pytest.approx(found["flops"] / (8 * 312e12))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="the TPU's compiler is not installed (pip install '.[plan]')")
def test_a_slice_of_tpus_that_is_not_here() -> None:
    (found,) = planned("--topology", "v5e:2x2", *SMALL)["plans"]
    assert found["compiled_for"] == "v5e:2x2"
    assert found["fits"]
    assert found["largest_batch"] > found["batch"]


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("jax_cuda13_plugin") is None, reason="JAX's compiler for GPUs is not installed ('.[cuda]')"
)
def test_gpus_that_are_not_here_are_compiled_for_where_their_compiler_is() -> None:
    found, simulated = planned("--topology", "h100:8", "a100:8", *SMALL)["plans"]
    assert found["compiled_for"] == "h100:8"
    assert simulated["compiled_for"] == "8 simulated devices of a CPU"
    assert found["fits"]
    assert found["largest_batch"] > found["batch"]
    assert {each["axes"] for each in found["exchanges"]} == {"data"}
    assert 0.5 < found["bytes"]["state"] / simulated["bytes"]["state"] < 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--topology is missing"),
        (("--topology", "v5:4x4"), "choose v5e"),
        (("--topology", "h100:0"), "h100:8"),
        (("--topology", "v5e:16"), "v5e:4x4"),
        (("--topology", "v5e:99x99"), "v5e:4x4"),
        (("--topology", "h100:8", "--preset", "bas"), "did you mean base"),
        (("--topology", "h100:8", "--length", "999999"), "exceeds --max-length 1024"),
    ],
)
def test_mistakes_are_one_line(options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_line(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_a_mesh_that_does_not_fit_is_refused_before_anything_is_compiled() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "jax_mlm.plan", "--topology", "h100:8", "--mesh", "data=3"]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--mesh data=3 is for 3 devices, but there are 8" in done.stderr


def test_slices_are_read() -> None:
    assert [(each.devices, each.tpu) for each in map(read_slice, ("v5p:2x2x2", "h200:256"))] == [
        (8, True),
        (256, False),
    ]


@pytest.mark.parametrize(("given", "parts", "rows"), [(0, 8, 53), (16, 16, 59)])
def test_a_step_is_planned_in_as_few_microbatches_as_fit(
    given: int, parts: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 rows in a step, of which 53 fit at a time: a row takes 1 GB, the state 1 GB, and a run has 90 % of 60 GB."""

    class Step:
        def __init__(self, train: Any) -> None:
            rows = train.batch // train.accumulate
            self.sizes = {"state": 10**9, "step": rows * 10**9, "all": (1 + rows) * 10**9}

        def as_text(self) -> str:
            return ""

    monkeypatch.setattr("jax_mlm.plan.compile_for", lambda mesh, train, options=None: Step(train))
    monkeypatch.setattr("jax_mlm.plan.bytes_of", lambda step: step.sizes if step else {})
    config = PlanConfig(preset="tiny", batch=256, accumulate=given)
    train = training(config)
    plan = made(read_slice("h100:1"), config, train)
    assert (plan.batch, plan.accumulate, plan.fits) == (256, parts, True)
    assert plan.bytes["step"] == 256 // parts * 10**9
    assert f"256 rows × 128 tokens in {parts} microbatches" in told(plan, train)
    assert f"fits in {parts} microbatches: about {rows * parts} rows" in told(plan, train)


@pytest.mark.parametrize("reference", [8, 24])
def test_the_largest_batch_is_where_memory_ends(reference: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of b rows takes 100 + 7·b bytes, and 90 % of that at the lowest level of optimization."""
    monkeypatch.setattr("jax_mlm.plan.compile_for", lambda mesh, train, options: train.batch)
    monkeypatch.setattr("jax_mlm.plan.bytes_of", lambda batch: {"all": 0.9 * (100 + 7 * batch)})
    train: Any = training(PlanConfig(preset="tiny"))
    mesh: Any = None
    for room in (100, 155, 157, 1000, 101 + 7 * 80):
        most = max((b for b in range(0, 500, 8) if 100 + 7 * b <= room), default=0)
        assert largest_batch(mesh, train, 8, room, reference, 100 + 7 * reference) == most
