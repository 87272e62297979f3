"""One step: the same whatever the microbatches, devices or batches before, and it compiles once."""

import pickle
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from support.eight import on_eight_devices
from support.steps import (
    BATCH,
    CONFIG,
    KEY,
    LENGTH,
    VOCABULARY,
    packed_batch,
    state_shapes,
    take_steps,
    tree_difference,
)

from jax_mlm.config import MaskConfig, OptimConfig
from jax_mlm.evals.heldout import result_of
from jax_mlm.parallel.mesh import make_mesh
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.tasks.mlm import masked_lm
from jax_mlm.tasks.task import Task
from jax_mlm.train.meter import Meter
from jax_mlm.train.optim import Products, make_optimizer, make_schedule
from jax_mlm.train.program import jitted_step
from jax_mlm.train.state import laid_out
from jax_mlm.train.step import init_state, make_train_step


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


def test_matrices_are_cast_once_a_step_outside_the_loop_over_microbatches() -> None:
    """The table is cast for the projection; it is looked up in float32."""
    task = masked_lm(CONFIG, MaskConfig(), VOCABULARY, LENGTH, jnp.bfloat16)
    config = OptimConfig()
    step = make_train_step(task, make_optimizer(config), make_schedule(config), jax.random.key(7), accumulate=4)
    state = state_shapes()
    casts = {"once": Counter[tuple[int, ...]](), "in the loop": Counter[tuple[int, ...]]()}

    def count(jaxpr: Any, where: str) -> None:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "convert_element_type" and equation.params["new_dtype"] == jnp.bfloat16:
                casts[where][equation.invars[0].aval.shape] += 1
            within = "in the loop" if equation.primitive.name == "scan" else where
            for inside in jaxprs_in_params(equation.params):
                count(inside, within)

    count(jax.make_jaxpr(step)(state, packed_batch(0), jnp.int32(9)).jaxpr, "once")
    matrices = Counter(leaf.shape for leaf in jax.tree.leaves(state.params) if leaf.ndim == 2)
    assert {shape: casts["once"][shape] for shape in matrices} == matrices
    assert not {shape: casts["in the loop"][shape] for shape in matrices if casts["in the loop"][shape]}


def test_float32_is_multiplied_as_float32_on_a_gpu() -> None:
    """In a step in that type, with the gradients that are written out, and in the validation of any run."""
    mesh, config, state, batch = make_mesh(BATCH, 1, ""), OptimConfig("muon"), state_shapes("muon"), packed_batch(0)
    inexact, exact = (masked_lm(CONFIG, MaskConfig(), VOCABULARY, LENGTH, x) for x in (jnp.bfloat16, jnp.float32))
    tx, schedule = make_optimizer(config, products=Products(jnp.float32, mesh)), make_schedule(config)
    step = jitted_step(exact, tx, schedule, 1, jnp.float32, mesh, laid_out(state, mesh))
    traces = step.trace(KEY, state, batch, jnp.int32(9)), jax.jit(inexact.examine).trace(state.params, batch)
    for traced in traces:
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        products = re.findall("stablehlo.dot_general.*", text)
        assert len(products) >= 8
        assert all("precision = [HIGHEST, HIGHEST]" in product for product in products)


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


def test_a_mean_over_weights_that_add_up_to_less_than_1_is_a_mean() -> None:
    """All weights times a thousandth make the same step, and the same loss is reported."""
    optim = OptimConfig(lr=0.1, schedule="constant", warmup=0.0, clip=0.0)
    tx = make_optimizer(replace(optim, adam_eps=1.0))

    def loss(params: Any, factor: Any, tokens: Any, keys: Any) -> Any:
        off = jnp.square(params["table"][tokens] - 1.0).sum(-1)
        sums = Metrics(off.sum(), (off < 1).sum(), jnp.float32(off.size))
        return jax.tree.map(lambda x: x * factor, (sums.loss_sum, sums))

    def prepare(batch: Any, *_: Any) -> Any:
        return jnp.asarray(batch.tokens)

    params = {"table": np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)}
    task = Task(lambda key: params, prepare, loss, lambda *_: None, lambda *_: {}, 1)
    step = jax.jit(make_train_step(task, tx, make_schedule(optim), jax.random.key(7)))
    state = init_state(params, tx)
    (whole, metrics), (small, few) = (step(state, packed_batch(0), 9, factor) for factor in (1.0, 1e-3))
    assert 0 < few.count < 1
    assert tree_difference(whole.params, params) > 1e-3
    assert tree_difference(whole.params, small.params) < 2e-5
    assert result_of(few).loss == pytest.approx(result_of(metrics).loss, rel=1e-5)


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
