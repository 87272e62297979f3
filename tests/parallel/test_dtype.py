"""The type that a run computes in: left to the machine, kept in run.json, and harmless to what is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.runs import TINY, stopped_after, train_line
from support.texts import sentences

from jax_mlm.config import TrainConfig
from jax_mlm.parallel import compile as compiling
from jax_mlm.parallel import cores
from jax_mlm.parallel.compile import compute_dtype, resolved
from jax_mlm.presets import PRESETS
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run
from jax_mlm.run.log import read_metrics
from jax_mlm.train.__main__ import COMMAND
from jax_mlm.train.loop import train

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


@pytest.mark.parametrize("first", ["bfloat16", "float32"])
def test_a_run_goes_on_in_the_type_that_it_began_with(monkeypatch, tmp_path, first):
    """Also with a JAX that would take another by now."""
    (tmp_path / "text.txt").write_text(sentences(40))
    options = [*TINY, "--steps", "4", "--data", f"{tmp_path}/text.txt", "--eval-every", "2"]
    assert train_line(*options, "--dtype", first, "--out", tmp_path / "straight") == 0
    monkeypatch.setattr(compiling, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(compiling, "FAST_BF16", first == "bfloat16")
    config = COMMAND.read([*options, "--out", f"{tmp_path}/parts"])
    with pytest.raises(KeyboardInterrupt):
        train(config, stopped_after(2))
    monkeypatch.setattr(compiling, "FAST_BF16", first != "bfloat16")
    assert train_line("--resume", "--out", tmp_path / "parts") == 0
    assert read_run(tmp_path / "parts").dtype == first
    straight, parts = (load_params(tmp_path / run)[1] for run in ("straight", "parts"))
    jax.tree.map(np.testing.assert_array_equal, straight, parts)


@pytest.mark.slow
def test_16_bits_learn_real_text_as_32_do(shared_data, tmp_path):
    """`nano` makes as low a loss in both: 100 steps, of which the last decay to zero."""
    for part, size in (("train", 1_000_000), ("valid", 100_000)):
        text = (shared_data / "wikitext-2" / f"wiki.{part}.tokens").read_text(encoding="utf-8")
        (tmp_path / f"{part}.txt").write_text(text[:size], encoding="utf-8")
    options = ["--preset", "nano", "--steps", "100", "--batch", "16", "--log-every", "50", "--eval-every", "100"]
    options += ["--tokenizer-limit", "2048", "--data", f"{tmp_path}/train.txt", "--valid", f"{tmp_path}/valid.txt"]
    for dtype in ("float32", "bfloat16"):
        assert train_line(*options, "--dtype", dtype, "--out", tmp_path / dtype) == 0
    exact, rounded = (read_metrics(tmp_path / dtype)[-1] for dtype in ("float32", "bfloat16"))
    assert exact["loss"] < 6
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=5e-3)
