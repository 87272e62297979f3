"""The kernels of accelerators without an accelerator: what they are given, what they become, and which one is taken."""

import json
import re
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.attention import dense, documents, drawn, mixed
from support.eight import on_eight_devices
from support.runs import TINY, train_line
from support.steps import CONFIG, KEY, TUNED, jitted_step, labelled_batch, packed_batch

from jax_mlm.config import TaskConfig
from jax_mlm.model.ops import kernels as library
from jax_mlm.model.ops.attention import attend
from jax_mlm.model.ops.kernels import KERNELS, OURS, OWN, Case, Kernel, Kernels
from jax_mlm.model.ops.scores import visible
from jax_mlm.parallel import attention
from jax_mlm.parallel.attention import choose_attention, chosen_of, line_of, tried_apart
from jax_mlm.parallel.mesh import make_mesh
from jax_mlm.report import outcome
from jax_mlm.tasks.classify import labelled
from jax_mlm.train import loop
from jax_mlm.train.record import write_run_files
from jax_mlm.train.setup import claimed, set_up

FLEX = pytest.mark.skipif(not library._has_flex(), reason="this JAX has no score_mod")
SMALL = replace(CONFIG, width=64, layers=2, global_every=2, local_window=8, dropout=0.0)
"""A layer of each kind; no other matrix of it is as wide as a row is long."""


@pytest.mark.parametrize("window", [None, 0, 3, 50])
def test_an_interval_of_keys_is_what_a_query_sees(window):
    segments = jnp.asarray(documents(np.random.default_rng(0), 20, 33))
    score = np.random.default_rng(1).normal(size=(20, 2, 33, 33)).astype(np.float32)

    @jax.jit
    def every(score):
        start, end = (x[:, None, :, None] for x in library.interval(segments, window))
        found, gradient = jax.vjp(lambda score: library.inside(score, start, end), score)
        return found, gradient(score)[0], visible(segments, window)

    found, gradient, seen = every(score)
    np.testing.assert_array_equal(found, np.where(seen, score, np.float32(library.NEGATIVE)))
    np.testing.assert_array_equal(gradient, score)


def test_lengths_and_offsets_lay_out_every_token_once():
    segments = documents(np.random.default_rng(0), 50, 33)
    laid = jax.jit(library.lengths_and_offsets, static_argnums=1)
    lengths, offsets = map(np.asarray, laid(jnp.asarray(segments), 8))
    for row, length, offset in zip(segments, lengths, offsets, strict=True):
        cuts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        unused = [-1] * (9 - len(cuts))
        assert length.tolist() == [*np.diff(cuts), *unused]
        assert offset.tolist() == [*cuts[:-1], *unused, -1]


@pytest.mark.parametrize("window", [pytest.param(None, marks=pytest.mark.slow), 20])
def test_splash_equals_the_scores_of_all_pairs(monkeypatch, window):
    from jax.experimental.pallas.ops.tpu import splash_attention

    make = partial(splash_attention.make_splash_mha_single_device, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha_single_device", make)
    q, k, v, g, segments = drawn(2, 1, 256, 64)
    ours = jax.jit(partial(mixed, lambda q, k, v: library.splash(q, k, v, segments, window, 0)))(q, k, v, g)
    for a, b in zip(ours, jax.jit(partial(mixed, dense(segments, window)))(q, k, v, g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("window", [None, 5])
def test_tokamax_is_given_intervals_that_are_right(monkeypatch, window):
    """Its mask, as it is written in its `base.py`; queries come scaled."""

    def mosaic(q, k, v, *, mask, logits_scale):
        at = jnp.arange(k.shape[1])
        seen = (at >= mask.k_start[..., None]) & (at < mask.k_end[..., None])
        scores = jnp.einsum("BQHK,BSHK->BHQS", q, k) * logits_scale
        return jnp.einsum("BHQS,BSHK->BQHK", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)

    case = Case("gpu", "bfloat16", 4, 2, 33, 8, window, 16)
    assert not KERNELS["tokamax"].fits(case)
    spec = SimpleNamespace(name="tokamax")
    api, base = SimpleNamespace(IMPLEMENTATIONS={"mosaic_gpu": mosaic}), SimpleNamespace(Mask=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "tokamax", SimpleNamespace(__spec__=spec))
    for name, part in (("api", api), ("base", base)):
        monkeypatch.setitem(sys.modules, f"tokamax._src.ops.attention.{name}", part)
    assert KERNELS["tokamax"].fits(case)
    assert not KERNELS["tokamax"].fits(case._replace(dtype="float32"))
    q, k, v, g, segments = drawn(4, 2, 33, 8)
    ways = (lambda q, k, v: library.tokamax_intervals(q, k, v, segments, window, 16)), dense(segments, window)
    found, expected = jax.jit(lambda *given: [mixed(way, *given) for way in ways])(q, k, v, g)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def without_a_gpu(patch):
    """Let JAX lower cuDNN's kernels where there is no cuDNN."""
    for name, value in (
        ("check_cudnn_version", 92300), ("check_compute_capability", True), ("is_cuda_compute_capability_equal", False),
    ):  # fmt: skip
        patch(library._library(), name, lambda *_, value=value: value)


def lowered(kernels: Kernels, mesh=None, tuned: TaskConfig | None = None) -> str:
    """Return the training step for NVIDIA's GPUs as text: of masked tokens, or of a task."""
    task = labelled(SMALL, tuned, jnp.bfloat16, 0, kernels) if tuned else None
    steps = []

    def begun():
        step, state = jitted_step("adamw", 1, mesh, SMALL, jnp.bfloat16, kernels, task)
        steps.append(step)
        return state

    state, (step,) = jax.eval_shape(begun), steps
    batch = labelled_batch(tuned, 0) if tuned else packed_batch(0)
    return step.trace(KEY, state, batch, jnp.int32(9)).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("kernels", "masks"),
    [
        (Kernels("cudnn packed", "cudnn mask", 4), 1),
        pytest.param(Kernels("cudnn lengths", "cudnn mask", 1), 1, marks=pytest.mark.slow),
        pytest.param(Kernels("cudnn packed", "cudnn flex", 4), 0, marks=[FLEX, pytest.mark.slow]),
        pytest.param(Kernels("cudnn flex", "cudnn flex", 4), 0, marks=FLEX),
    ],
    ids=lambda value: ", ".join(value[:2]) if isinstance(value, Kernels) else "",
)
def test_a_step_on_a_gpu_has_no_scores_in_memory(monkeypatch, kernels, masks):
    """One call forward and one backward a layer; the only array of all pairs is a mask in 16 bits, without gradient."""
    without_a_gpu(monkeypatch.setattr)
    text = lowered(kernels)
    calls = re.findall(r"custom_call @__cudnn\$fmha\w*Softmax(Backward)?\(.*-> \((.*)\)", text)
    assert sorted(way for way, _ in calls) == ["", "", "Backward", "Backward"]
    assert not any("32x32" in results for _, results in calls), "the gradient of a mask"
    outside = re.sub(r"func.func private @inside\w*\(.*?\n  }", "", text, flags=re.DOTALL)
    pairs = set(re.findall(r"tensor<\w*x32x32x(\w+)>", outside))
    assert pairs - ({"i1", "i32"} if masks else set()) == ({"bf16"} if masks else set())
    products = re.findall(r"stablehlo.dot_general .*: \(tensor<\S*x([a-z]\w+)>, tensor<\S*x([a-z]\w+)>\)", text)
    assert {kind for pair in products for kind in pair} == {"bf16"}
    assert (r"max_seg_per_batch\22: 4" in text) == ("cudnn packed" in kernels)


def test_fine_tuning_on_a_gpu_has_no_scores_in_memory_either(monkeypatch):
    without_a_gpu(monkeypatch.setattr)
    text = lowered(Kernels("cudnn packed", "cudnn mask", 4), tuned=TUNED["tag"])
    assert len(re.findall(r"custom_call @__cudnn\$fmha\w*Softmax", text)) == 4
    assert set(re.findall(r"tensor<\w*x32x32x(\w+)>", text)) - {"i1", "i32"} == {"bf16"}


ON_A_MESH = """
import jax.numpy as jnp, json
import parallel.test_attention as tests
from jax_mlm.model.ops import kernels as library
from jax_mlm.model.ops.scores import dense_attention, visible
from jax_mlm.parallel.mesh import make_mesh, make_placer
from support.steps import KEY, jitted_step, packed_batch
shapes = []
def dense(q, k, v, segments, window, documents):
    shapes.append(q.shape)
    return dense_attention(q, k, v, visible(segments, window), None)
library.KERNELS = {**library.KERNELS, "dense": library.Kernel(lambda case: True, dense)}
mesh = make_mesh(16, 1, "data=2,fsdp=2,tensor=2")
step, state = jitted_step("adamw", 1, mesh, tests.SMALL, jnp.float32, library.Kernels("dense", "dense", 4, mesh))
_, metrics = step(KEY, state, make_placer(mesh)(packed_batch(0)), jnp.int32(9))
tests.without_a_gpu(setattr)
text = tests.lowered(library.Kernels("cudnn packed", "cudnn mask", 4, mesh), mesh)
calls = [line for line in text.splitlines() if "@__cudnn" in line]
print(json.dumps([float(metrics.loss_sum), shapes[-1], [line.count("tensor<4x2x32x16xbf16>") for line in calls]]))
"""


@pytest.mark.slow
def test_each_device_attends_for_its_own_rows_and_heads():
    step, state = jitted_step("adamw", 1, None, SMALL)
    _, metrics = step(KEY, state, packed_batch(0), jnp.int32(9))
    loss, shape, local = json.loads(on_eight_devices(ON_A_MESH))
    assert loss == pytest.approx(float(metrics.loss_sum), rel=1e-6)
    assert shape == [4, 2, 32, 16]
    assert len(local) == 4
    assert all(local)


TRIER = """import json, os, sys; sys.path[:] = json.loads(sys.argv[1])
from jax_mlm.model.ops.attention import attend
from jax_mlm.model.ops.kernels import Kernel
from jax_mlm.parallel.attention import answer

def attention(q, k, v, segments, window, documents):
    return attend(q, k, v, segments, window)

def wrong(q, k, v, segments, window, documents):
    return attend(q, k, v, segments * 0, window)

def unfit(q, *_):  # how JAX's own kernels refuse a shape that they do not support
    raise NotImplementedError(f"heads of {q.shape[-1]}")

def deadly(*_):
    print("a word of a library's", '"ab"', '["cut', sep="\\n", flush=True)
    print("F0000 cannot translate", file=sys.stderr, flush=True)
    os.abort()

def blind(q, k, v, segments, window, documents):
    return v * float("nan")

every = {name: Kernel(lambda case: True, globals()[name]) for name in ("wrong", "unfit", "deadly", "blind")}
answer(every | {"fast": Kernel(lambda case: True, attention)})
"""


def test_a_kernel_that_is_wrong_or_kills_its_process_is_refused():
    case = Case("gpu", "bfloat16", 2, 2, 48, 8, None, 4)
    segments = documents(np.random.default_rng(0), 2, 48)
    tried = tried_apart((OWN, "wrong", "deadly", "unfit", "blind", "fast"), case, segments, TRIER)
    record = chosen_of(tried)
    refused = {name: result["refused"] for name, result in record["tried"].items() if "refused" in result}
    assert "times ours" in refused["wrong"]
    assert "F0000 cannot translate" in refused["deadly"]
    assert refused["unfit"] == f"NotImplementedError: heads of {case.head_width}", "it was given this very shape"
    assert "finite" in refused["blind"]
    assert set(record["tried"]) - set(refused) == {OWN, "fast"}
    assert "deadly refused (its process ended with -6: F0000" in line_of({"whole": record})


@pytest.mark.parametrize(
    ("tried", "chosen"),
    [
        ({"a": {"errors": [2.9, 0.1], "ms": 1.0}, "b": {"errors": [1.0, 1.0], "ms": 2.0}}, "a"),
        ({"a": {"errors": [3.1, 0.1], "ms": 1.0}, "b": {"errors": [1.0, 1.0], "ms": 2.0}}, "b"),
        ({"a": {"refused": "no"}, "b": {"errors": [1.0, 1.0], "ms": 6.0}}, OWN),
        ({OWN: {"errors": [1.0], "refused": "memory"}, "a": {"errors": [1.0], "ms": 9.0}}, "a"),
        ({OWN: {"errors": [1.0], "refused": "memory"}, "a": {"errors": [3.1], "ms": 9.0}}, OWN),
        ({OWN: {"refused": "memory"}, "a": {"errors": [1.0], "ms": 9.0}}, OWN),
    ],
)
def test_the_fastest_right_one_is_taken(tried, chosen):
    assert chosen_of({OWN: {"errors": [1.0, 1.0], "ms": 5.0}, **tried})["kernel"] == chosen


def test_long_rows_that_ours_has_no_memory_for_get_a_kernel(monkeypatch):
    """As few rows are compared as their scores fit; ours is refused at the full number, and still compared with."""
    compared = []

    def short(q, k, v, segments, window):
        compared.append(len(q))
        if len(q) > fits:
            raise MemoryError("RESOURCE_EXHAUSTED: Out of memory")
        return attend(q, k, v, segments, window)

    def fast(q, k, v, segments, window, documents):
        return attend(q, k, v, segments, window)

    monkeypatch.setattr(attention, "attend", short)
    case, segments = Case("gpu", "bfloat16", 3, 2, 48, 8, None, 4), documents(np.random.default_rng(0), 3, 48)

    def tried():
        return dict(attention.trials((OWN, "fast"), case, segments, {"fast": Kernel(lambda case: True, fast)}))

    for scores, fits in ((1, 1), (2 * 4 * 2 * 48**2, 2)):
        monkeypatch.setattr(attention, "SCORES", scores)
        compared.clear()
        found = tried()
        assert set(compared) == {fits, 3}
        assert "RESOURCE_EXHAUSTED" in found[OWN]["refused"]
        assert chosen_of(found)["kernel"] == "fast"
    fits = 0
    record = chosen_of(tried())
    assert record["kernel"] == OWN
    why = "ours in float32, to compare it with, failed: MemoryError"
    assert all(why in each["refused"] for each in record["tried"].values())


def test_what_was_chosen_is_kept_by_a_resumed_run(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    asked = []

    def tried(names, case, segments):
        asked.append(case)
        return {name: {"errors": [1.0], "ms": 9.0 - i} for i, name in enumerate(names)}

    monkeypatch.setattr(attention, "_tried", tried)
    segments, mesh = np.ones((4, 32), np.int32), make_mesh(4, 1, f"data={jax.device_count()}")
    choose = partial(choose_attention, SMALL, jnp.bfloat16, mesh, segments)
    chosen, record = choose(3)
    assert chosen == Kernels("cudnn mask", "cudnn mask", 4)
    assert asked == [Case("gpu", "bfloat16", 4, 4, 32, 16, window, 4) for window in (None, 4)]
    assert choose(1)[0] == Kernels("cudnn lengths", "cudnn mask", 1)
    asked.clear()
    kept = {layers: {**each, "kernel": OWN} for layers, each in record.items()}
    assert choose(3, kept) == (Kernels(documents=4), kept)
    assert choose(3, {layers: {"kernel": "removed since"} for layers in kept})[1] == record
    left = {layers: {"kernel": OWN, "tried": {OWN: {"refused": "memory"}}} for layers in kept}
    assert choose(3, left)[1] == record, "ours was only what was left"
    assert choose_attention(replace(SMALL, attention_dropout=0.1), jnp.bfloat16, mesh, segments, 3) == (OURS, {})
    assert choose_attention(SMALL, jnp.float32, mesh, segments, 3)[1] == {}
    assert {case.dtype for case in asked} == {"bfloat16"}


def test_a_cpu_has_no_other_kernel():
    assert not any(k.fits(Case("cpu", "bfloat16", 8, 8, 128, 64, None, 1)) for k in KERNELS.values())


def test_run_json_keeps_what_was_tried(tmp_path, monkeypatch, capsys):
    def begun(config, stopping):
        with claimed(config) as (config, run, _):
            write_run_files(set_up(config, run))
        return run

    def tried(names, case, segments):
        assert segments.shape == (4, 32)
        assert case.documents == 16
        return {name: {"errors": [1.0], "ms": 9.0 - i} for i, name in enumerate(names)}

    monkeypatch.setenv("JAX_MLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loop, "train", begun)
    monkeypatch.setattr(outcome, "print_next", lambda run, own_text: None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(attention, "_tried", tried)
    text, run = tmp_path / "a.txt", tmp_path / "run"
    text.write_text("".join(f"w{i} x\n" for i in range(400)))
    line = (*TINY, "--batch", "8", "--accumulate", "2", "--document", "line", "--data", text, "--out", run)
    assert train_line(*line, "--steps", "1") == 0, capsys.readouterr().err
    before = (run / "run.json").read_text()
    assert json.loads(before)["device"]["attention"]["whole"]["kernel"] == "cudnn mask"
    assert json.loads(before)["device"]["attention"]["whole"]["rows"] == 4
    assert "attention: rows by cudnn mask (own 9.00 ms, cudnn packed" in capsys.readouterr().err
    monkeypatch.setattr(attention, "_tried", None)
    assert train_line("--resume", "--out", run) == 0
    assert json.loads((run / "run.json").read_text())["device"] == json.loads(before)["device"]
    assert "attention:" not in capsys.readouterr().err
