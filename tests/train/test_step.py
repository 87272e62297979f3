"""One step: the same whatever the microbatches, devices or batches before, and it compiles once."""

import json
import os
import subprocess
import sys

import numpy as np
from support.paths import ROOT
from support.steps import take_steps, tree_difference

from jax_mlm.tasks.metrics import Metrics
from jax_mlm.train.meter import Meter


def test_accumulation_equals_one_batch():
    whole, metrics, _ = take_steps(1)
    for accumulate in (2, 8):
        parts, their_metrics, _ = take_steps(accumulate)
        assert tree_difference(whole, parts) < 2e-5
        assert their_metrics.count == metrics.count
        np.testing.assert_allclose(their_metrics.loss_sum, metrics.loss_sum, rtol=1e-5)


EIGHT = """
import json
import jax, numpy as np
from jax_mlm.parallel.mesh import make_mesh, make_placer
from support.steps import take_steps, tree_difference
assert jax.device_count() == 8
mesh = make_mesh(16, 1)
one, metrics, _ = take_steps(1)
out = {}
for accumulate in (1, 2):
    spread, theirs, _ = take_steps(accumulate, make_placer(mesh))
    loss, count = metrics.loss_sum - theirs.loss_sum, metrics.count - theirs.count
    out[accumulate] = [tree_difference(one, spread), float(loss), float(count)]
print(json.dumps(out))
"""


def test_eight_devices_equal_one(tmp_path):
    """Data parallel on 8 simulated devices, alone and with accumulation, dropout on."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])
    done = subprocess.run([sys.executable, "-c", EIGHT], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for worst, loss, count in json.loads(done.stdout).values():
        assert worst < 2e-5
        assert abs(loss) < 1e-2
        assert count == 0


def test_a_step_compiles_once():
    _, _, step = take_steps(1, count=4)
    assert step._cache_size() == 1


def test_the_meter_waits_only_for_the_step_before():
    """Metrics that report when they are read stand in for a device that is still computing."""
    read: list[int] = []

    class Pending:
        def __init__(self, step: int) -> None:
            self.step = step

        def __array__(self, dtype=None, copy=None):
            read.append(self.step)
            return np.asarray(1.0)

    meter = Meter(lambda tokens: 0.0, None)
    for step in range(4):
        meter.add(Metrics(Pending(step), Pending(step), Pending(step)), tokens=10)
        assert set(read) == set(range(step))
    assert meter.read(wait=False)["loss"] == 1.0
    assert 3 not in read
    meter.read(wait=True)
    assert 3 in read
    meter.add(Metrics(Pending(4), Pending(4), Pending(4)), tokens=10)
    assert meter.read(wait=False)["tokens"] == 10, "a line that has only this step waits for it, and is not empty"
