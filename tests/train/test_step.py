"""One step: the same whatever the microbatches, devices or batches before, and it compiles once."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jax_mlm.config import MaskConfig, ModelConfig, OptimConfig
from jax_mlm.data import Batch
from jax_mlm.loss import Metrics
from jax_mlm.meter import Meter
from jax_mlm.model import init_params, make_forward
from jax_mlm.optim import make_optimizer, make_schedule
from jax_mlm.step import init_state, make_train_step
from jax_mlm.tokenizer import Vocabulary

VOCABULARY = Vocabulary(size=64, pad=0, mask=4, unk=1, cls=2, sep=3, special=(0, 1, 2, 3, 4))
CONFIG = ModelConfig(vocab_size=64, width=32, layers=2, heads=4, ff_width=48, max_length=32, dropout=0.1)
LENGTH, BATCH = 32, 16


def batch(seed: int = 0) -> Batch:
    """Rows with very different numbers of real tokens: a mean of means would differ from Σ/Σ."""
    rng = np.random.default_rng(seed)
    real = np.arange(LENGTH) < rng.integers(4, LENGTH, (BATCH, 1))
    tokens = np.where(real, rng.integers(5, 64, (BATCH, LENGTH)), 0).astype(np.int32)
    at = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    return Batch(tokens, real.astype(np.int32), at, np.where(real, at, -1), np.arange(BATCH, dtype=np.int32))


def steps(accumulate: int, place=lambda x: x, count: int = 3):
    """Parameters after a few steps, with plain gradient descent: Adam's signs would hide a wrong scale."""
    config = OptimConfig(lr=0.1, clip=0.0, schedule="constant", warmup=0.0, weight_decay=0.0)
    tx = make_optimizer(replace(config, adam_eps=1.0))
    step = jax.jit(
        make_train_step(
            make_forward(CONFIG),
            tx,
            make_schedule(config),
            MaskConfig(),
            VOCABULARY,
            LENGTH,
            jax.random.key(7),
            accumulate,
        )
    )
    state = init_state(init_params(CONFIG, jax.random.key(0)), tx)
    for i in range(count):
        state, metrics = step(state, place(batch(i)), jnp.int32(100))
    return state.params, metrics, step


def difference(a, b) -> float:
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(a))
    return (
        max(
            float(np.abs(np.asarray(x) - np.asarray(y)).max())
            for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
        )
        / scale
    )


def test_accumulation_equals_one_batch():
    whole, metrics, _ = steps(1)
    for accumulate in (2, 8):
        parts, their_metrics, _ = steps(accumulate)
        assert difference(whole, parts) < 2e-5
        assert their_metrics.count == metrics.count
        np.testing.assert_allclose(their_metrics.loss_sum, metrics.loss_sum, rtol=1e-5)


EIGHT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from jax_mlm import sharding
from test_step import steps, difference
assert jax.device_count() == 8
mesh = sharding.make_mesh(16, 1)
one, metrics, _ = steps(1)
out = {}
for accumulate in (1, 2):
    spread, theirs, _ = steps(accumulate, sharding.make_placer(mesh))
    loss, count = metrics.loss_sum - theirs.loss_sum, metrics.count - theirs.count
    out[accumulate] = [difference(one, spread), float(loss), float(count)]
print(json.dumps(out))
"""


def test_eight_devices_equal_one(tmp_path):
    """Data parallel on 8 simulated devices, alone and with accumulation, dropout on."""
    here = os.path.dirname(__file__)
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([os.path.dirname(os.path.dirname(here)), *sys.path])
    done = subprocess.run([sys.executable, "-c", EIGHT, here], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for worst, loss, count in json.loads(done.stdout).values():
        assert worst < 2e-5
        assert abs(loss) < 1e-2
        assert count == 0


def test_a_step_compiles_once():
    _, _, step = steps(1, count=4)
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
        meter.add(Metrics(Pending(step), Pending(step), Pending(step)), tokens=10, flops=0.0)
        assert set(read) == set(range(step))
    assert meter.read(wait=False)["loss"] == 1.0
    assert 3 not in read
    meter.read(wait=True)
    assert 3 in read
    meter.add(Metrics(Pending(4), Pending(4), Pending(4)), tokens=10, flops=0.0)
    assert meter.read(wait=False)["tokens"] == 10, "a line that has only this step waits for it, and is not empty"
