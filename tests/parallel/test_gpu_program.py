"""The training step as XLA compiles it for an H100, which need not be here."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import pytest

from jax_mlm.parallel.topology import compiling_for, mesh_of, read_slice
from jax_mlm.presets import PRESETS
from jax_mlm.train.ahead import lowered_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("jax_cuda13_plugin") is None,
        reason="JAX's compiler for GPUs is not installed (pip install '.[cuda]')",
    ),
]
LAYERS, LENGTH = 2, 320
"""A layer attends to whole documents, the other to a window; nothing else is as large as a row is long."""


@cache
def program() -> str:
    tiny = PRESETS["tiny"]
    model = replace(tiny.model, layers=LAYERS, width=128, heads=2, ff_width=192, vocab_size=1024)
    corpus = replace(tiny.corpus, length=LENGTH)
    train = replace(tiny, model=model, corpus=corpus, dtype="bfloat16", batch=8, accumulate=1)
    mesh = mesh_of(read_slice("h100:1"), "")
    with compiling_for(mesh, {}) as options:
        return lowered_step(train, mesh).compile(compiler_options=options).as_text()


@cache
def computations() -> dict[str, list[str]]:
    """Return the instructions of each computation, but for what cuDNN compiles into its kernels."""
    found: dict[str, list[str]] = {}
    for head, body in re.findall(r"^(?:ENTRY )?%?(\S+) \(.*?\{\n(.*?)^\}", program(), re.M | re.S):
        found[head] = body.splitlines()
    inside = re.findall(r"__cudnn\S*,.*called_computations=\{([^}]*)\}", program())
    return {name: lines for name, lines in found.items() if not any(f"%{name}" in names for names in inside)}


def test_each_layer_has_one_kernel_each_way() -> None:
    kernels = re.findall(r'custom_call_target="__cudnn\$fmha\w*Softmax(Backward)?"', program())
    assert sorted(kernels) == [""] * LAYERS + ["Backward"] * LAYERS


def test_no_array_holds_all_pairs() -> None:
    every = "\n".join(line for lines in computations().values() for line in lines)
    assert len(every) > len(program()) / 2
    assert not re.findall(rf"\[[\d,]*{LENGTH},{LENGTH}\]", every)


def test_every_product_has_factors_of_16_bits() -> None:
    """Newton–Schulz's as well."""
    kinds = []
    for lines in computations().values():
        types = dict(re.findall(r"(%\S+) = (\w+)\[", "\n".join(lines)))
        for factors in re.findall(r" (?:dot|custom-call)\((%[^,)]+), (%[^,)]+)\)(?!.*__cudnn)", "\n".join(lines)):
            kinds.append(tuple(types[factor] for factor in factors))
    assert len(kinds) > 3 * (6 * LAYERS + 2)
    assert set(kinds) == {("bf16", "bf16")}
