"""The type that a run computes in: left to the machine, kept in run.json, and harmless to what is learned."""

import jax
import jax.numpy as jnp
import pytest
from support.steps import take_steps

from jax_mlm.config import TrainConfig
from jax_mlm.parallel import compile as compiling
from jax_mlm.parallel import cores
from jax_mlm.parallel.compile import compute_dtype, resolved
from jax_mlm.presets import PRESETS

NEW, OLD = TrainConfig(), TrainConfig(resume=True)


@pytest.mark.parametrize(
    ("backend", "processor", "kernels", "config", "expected"),
    [
        ("cpu", True, True, NEW, "bfloat16"),
        ("cpu", True, False, NEW, "float32"),
        ("cpu", False, True, NEW, "float32"),
        ("cpu", True, True, OLD, "float32"),  # run.json has the type of every run that was begun since
        ("gpu", False, True, NEW, "bfloat16"),
        ("tpu", False, True, OLD, "bfloat16"),
        ("cpu", True, True, TrainConfig(dtype="float32"), "float32"),
        ("cpu", False, False, TrainConfig(dtype="bfloat16"), "bfloat16"),
        ("gpu", True, True, PRESETS["sentence"], "float32"),
    ],
)
def test_auto_takes_16_bits_where_they_are_fast(monkeypatch, backend, processor, kernels, config, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(compiling, "multiplies_bf16", lambda: processor)
    monkeypatch.setattr(compiling, "FAST_BF16", kernels)
    assert resolved(config).dtype == expected
    assert compute_dtype(resolved(config)) == jnp.dtype(expected)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_int8", True),
        ("flags\t\t: fpu avx512f amx_bf16", True),
        ("Features\t: fp asimd i8mm bf16", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", False),
        (None, False),
    ],
)
def test_the_processor_is_asked_for_products_of_16_bits(monkeypatch, tmp_path, flags, expected):
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\n{flags}\nbogomips\t: 1\n")
    monkeypatch.setattr(cores, "CPUINFO", file)
    assert cores.multiplies_bf16() is expected


@pytest.mark.slow
def test_16_bits_learn_as_32_do():
    losses = [
        float(metrics.loss_sum / metrics.count) for _, metrics, _ in (take_steps(1), take_steps(1, dtype=jnp.bfloat16))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
