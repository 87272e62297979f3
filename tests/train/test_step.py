"""One step: the same whatever the microbatches, devices or batches before, and it compiles once."""

import pickle
from functools import cache
from typing import Any

import numpy as np
import pytest
from support.eight import on_eight_devices
from support.steps import take_steps, tree_difference

from jax_mlm.tasks.metrics import Metrics
from jax_mlm.train.meter import Meter


@cache
def one_batch() -> Any:
    """Four steps, each on a whole batch: the parameters, the last metrics, and the step."""
    return take_steps(1)


def test_accumulation_equals_one_batch():
    whole, metrics, _ = one_batch()
    parts, their_metrics, _ = take_steps(8)
    assert tree_difference(whole, parts) < 2e-5
    assert their_metrics.count == metrics.count
    np.testing.assert_allclose(their_metrics.loss_sum, metrics.loss_sum, rtol=1e-5)


EIGHT = """
import pickle, sys
import jax, numpy as np
from jax_mlm.parallel.mesh import make_mesh, make_placer
from support.steps import take_steps
assert jax.device_count() == 8
params, metrics, _ = take_steps(int(sys.argv[1]), make_placer(make_mesh(16, 1)))
sys.stdout.buffer.write(pickle.dumps(jax.tree.map(np.asarray, (params, metrics.loss_sum, metrics.count))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [2, 1])
def test_eight_devices_equal_one(accumulate):
    """Data parallel on 8 simulated devices, with accumulation and alone, dropout on."""
    printed = on_eight_devices(EIGHT, str(accumulate))
    spread, loss_sum, count = pickle.loads(printed)
    one, metrics, _ = one_batch()
    assert tree_difference(one, spread) < 2e-5
    assert loss_sum == pytest.approx(float(metrics.loss_sum), abs=1e-2)
    assert count == metrics.count


def test_a_step_compiles_once():
    _, _, step = one_batch()
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

    meter = Meter(None)
    for step in range(4):
        meter.add(Metrics(Pending(step), Pending(step), Pending(step)), tokens=10)
        assert set(read) == set(range(step))
    assert meter.read(wait=False)["loss"] == 1.0
    assert 3 not in read
    meter.read(wait=True)
    assert 3 in read
    meter.add(Metrics(Pending(4), Pending(4), Pending(4)), tokens=10)
    assert meter.read(wait=False)["tokens"] == 10, "a line that has only this step waits for it, and is not empty"
