"""The training step as XLA compiles it for a TPU, which need not be here."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec

import pytest

from jax_mlm.parallel.topology import compiling_for, mesh_of, read_slice
from jax_mlm.presets import PRESETS
from jax_mlm.train.ahead import lowered_step

LAYERS, LENGTH = 2, 384
"""A layer attends to whole documents, the other to a window; nothing else is as large as a row is long."""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="the TPU's compiler is not installed (pip install '.[plan]')")
def test_each_layer_has_splash_each_way_and_no_array_holds_all_pairs() -> None:
    tiny = PRESETS["tiny"]
    model = replace(tiny.model, layers=LAYERS, width=128, heads=2, ff_width=192, vocab_size=1024)
    train = replace(
        tiny, model=model, corpus=replace(tiny.corpus, length=LENGTH), dtype="bfloat16", batch=8, accumulate=1
    )
    mesh = mesh_of(read_slice("v5e:1x1"), "")
    with compiling_for(mesh, {}) as options:
        text = lowered_step(train, mesh).compile(compiler_options=options).as_text()
    kernels = re.findall(r"^ *%splash_mha_([a-z]+)\S* = .* custom-call\(", text, re.M)
    assert Counter(kernels) == dict.fromkeys(("fwd", "dq", "dkv"), LAYERS)
    assert not re.findall(rf"\[[\d,]*{LENGTH},{LENGTH}\]", text)
