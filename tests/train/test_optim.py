"""Schedules end at zero, decay spares norms and biases, Muon orthogonalises hidden matrices only."""

import re
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.models import randomised

from jax_mlm.config import ModelConfig, OptimConfig
from jax_mlm.parallel.mesh import Layout, mesh_over
from jax_mlm.train.optim import PLAIN, Products, is_hidden_matrix, make_optimizer, make_schedule

PARAMS = jax.tree.map(jnp.asarray, randomised(ModelConfig(vocab_size=20, width=16, layers=2, heads=2, ff_width=24)))


def first_update(tx: optax.GradientTransformation, grads: Any, params: Any = PARAMS) -> Any:
    """Return the updates and the optimizer's state after them, of one compiled program."""
    return jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params))(grads, params)


@pytest.mark.parametrize("name", ["wsd", "cosine", "linear"])
def test_schedules_rise_to_one_and_fall_to_zero(name):
    schedule = make_schedule(OptimConfig(schedule=name, warmup=0.1, decay=0.3))
    values = np.array([schedule(step, 200) for step in range(201)])
    assert values[0] == pytest.approx(1 / 20)
    assert (np.diff(values[:19]) > 0).all()
    assert values.max() == pytest.approx(1.0, abs=0.01)
    assert (np.diff(values[20:]) <= 1e-7).all()
    assert values[200] == pytest.approx(0.0, abs=1e-7)
    assert 0 < values[199] < 0.02


def test_wsd_is_stable_between_warmup_and_decay():
    schedule = make_schedule(OptimConfig(schedule="wsd", warmup=0.1, decay=0.3))
    assert [float(schedule(step, 100)) for step in (10, 40, 69)] == [1.0, 1.0, 1.0]
    assert float(schedule(85, 100)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_touches_matrices_only(name):
    """With a gradient of zero nothing moves but what decays."""
    tx = make_optimizer(OptimConfig(optimizer=name, weight_decay=0.1, lr=1.0, muon_lr=1.0))
    updates, _ = first_update(tx, jax.tree.map(np.zeros_like, PARAMS))

    def check(p, u):
        np.testing.assert_allclose(u, -0.1 * p if p.ndim == 2 else np.zeros_like(p), atol=1e-6)

    jax.tree.map(check, PARAMS, updates)


def test_adamw_moves_by_the_learning_rate_at_first():
    tx = make_optimizer(OptimConfig(lr=0.01, weight_decay=0.0, clip=0.0))
    grads = jax.tree.map(lambda p: np.full_like(p, -3.0), PARAMS)
    updates, _ = first_update(tx, grads)
    jax.tree.map(lambda u: np.testing.assert_allclose(u, 0.01, rtol=1e-4), updates)


def muon(products: Products, grads: Any, params: Any) -> Any:
    """Return the updates of a first step of Muon at a rate of one."""
    tx = make_optimizer(OptimConfig("muon", muon_lr=1.0, weight_decay=0.0, clip=0.0), products=products)
    return tx.update(grads, tx.init(params), params)[0]


@cache
def turned(products: Products) -> Any:
    """Return those of random gradients."""
    random = np.random.default_rng(1)
    grads = jax.tree.map(lambda p: random.normal(size=p.shape).astype(np.float32), PARAMS)
    return jax.jit(partial(muon, products))(grads, PARAMS)


def test_muon_takes_hidden_matrices_and_makes_them_nearly_orthogonal():
    kinds = is_hidden_matrix(PARAMS)
    assert kinds["layer_1"]["attention"]["qkv"]["kernel"]
    assert kinds["layer_0"]["mlp"]["up"]["kernel"]
    assert not kinds["token_table"]
    assert not kinds["layer_0"]["mlp_norm"]["scale"]
    updates = turned(PLAIN)
    singular = np.linalg.svd(np.asarray(updates["layer_0"]["attention"]["out"]["kernel"]), compute_uv=False)
    assert singular.min() > 0.4
    assert singular.max() < 1.4
    up, down = (updates["layer_0"]["mlp"][name]["kernel"] for name in ("up", "down"))
    assert up.shape == (16, 48), "it widens: its update is longer by the root of three"
    lengths = [np.linalg.svd(np.asarray(update), compute_uv=False).mean() for update in (up, down)]
    assert lengths == pytest.approx([3**0.5, 1], rel=0.25), "the singular values lie between 0.7 and 1.2"


class OneGPU:
    """What an optimizer knows of the mesh of one GPU."""

    size = 1
    devices = np.array([SimpleNamespace(platform="gpu")])


GPU: Any = OneGPU()


def test_muon_multiplies_the_matrices_of_a_shape_together_but_on_one_cpu():
    """On a GPU a chain of products a shape, in the type of the run; what they make is what each makes alone."""

    def lowered(products, platform):
        traced = jax.jit(partial(muon, products)).trace(PARAMS, PARAMS)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    shapes = {
        p.shape for p, hidden in zip(*map(jax.tree.leaves, (PARAMS, is_hidden_matrix(PARAMS))), strict=True) if hidden
    }
    found = re.findall(r"dot_general (.*): \((.*)\) ->", lowered(Products(jnp.bfloat16, GPU), "cuda"))
    assert len(found) == 5 * 3 * len(shapes)
    assert all("batching_dims = [0] x [0]" in dims and kinds.count("xbf16>") == 2 for dims, kinds in found)
    one = mesh_over(jax.devices()[:1], Layout())
    assert lowered(Products(jnp.float32, one), "cpu") == lowered(PLAIN, "cpu")
    together, alone = turned(Products(jnp.float32, GPU)), turned(PLAIN)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), together, alone)


def test_clipping_bounds_the_gradient():
    grads = jax.tree.map(lambda p: np.full_like(p, 100.0), PARAMS)
    tx = make_optimizer(OptimConfig(clip=1.0))
    seen = first_update(tx, grads)[1]
    first_moment = next(s for s in jax.tree.leaves(seen, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")).mu
    norm = np.sqrt(sum(float(jnp.square(x).sum()) for x in jax.tree.leaves(first_moment)))
    assert norm == pytest.approx(0.1, rel=1e-3), "(1 − β₁) of a gradient of norm 1"


def test_lamb_moves_each_matrix_by_a_part_of_its_length():
    params = {"dense": {"kernel": jnp.full((3, 4), 2.0), "bias": jnp.ones(4)}}
    tx = make_optimizer(OptimConfig("lamb", lr=0.01, clip=0.0, weight_decay=0.0))
    grads = jax.tree.map(lambda x: jnp.arange(1.0, 1 + x.size).reshape(x.shape), params)
    updates, _ = first_update(tx, grads, params)
    length = jnp.linalg.norm(updates["dense"]["kernel"]) / jnp.linalg.norm(params["dense"]["kernel"])
    assert float(length) == pytest.approx(0.01, rel=1e-5)
    np.testing.assert_allclose(updates["dense"]["bias"], -0.01, rtol=1e-5)  # Adam's first step: no trust ratio there
