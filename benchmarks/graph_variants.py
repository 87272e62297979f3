"""What each choice in our graphs is worth: fused operators, opsets, optimisation levels, threads, spinning, batches.

    python benchmarks/graph_variants.py
    python benchmarks/graph_variants.py --shape tiny --turns 1

All variants of a kind are open in one process and take turns, a few runs each, so that a machine that drifts drifts for
all; a variant's figure is its time over the time of what we ship, in the same turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime as ort
from machine import command, processor
from mlm_onnx.convert.encoder import _Encoder
from mlm_onnx.convert.graphs import fill_mask_graph
from mlm_onnx.convert.onnx_file import CONTRIB, FUSED_OPSET, OPSET, Graph
from mlm_onnx.convert.precision import FP32, Precision
from mlm_onnx.convert.quantize import INT8
from random_models import SHAPES, shaped

from jax_mlm.config import ModelConfig
from jax_mlm.model.encoder import init_params

RESULTS = Path(__file__).resolve().parent / "results"
LENGTHS = {"short": 18, "long": 128}
REPEAT = {"short": 10, "long": 3}
"""Runs in a turn."""
BATCHES = (1, 8, 32)
TEXTS = 64
"""On which batched int8 answers are compared with those of each text alone."""
PRECISIONS = {"int8": INT8, "fp32": FP32}
SHIPPED = "as shipped"
BUSY = "beside a busy process"
LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


# ---- forms of the graph --------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """Which operators stand for the parts of a BERT layer; the defaults are what we ship."""

    opset: int = FUSED_OPSET
    gelu: str = "Gelu"
    attention: str = "Attention"
    add_norm: str = "LayerNormalization"


FORMS: Mapping[str, Form] = {
    SHIPPED: Form(),
    "opset 20, attention of MatMul and Softmax": Form(opset=OPSET, attention="MatMul"),
    "opset 17, so, and Gelu from Erf": Form(opset=17, gelu="Erf", attention="MatMul"),
    "com.microsoft.MultiHeadAttention": Form(attention="MultiHeadAttention"),
    "com.microsoft.SkipLayerNormalization": Form(add_norm="SkipLayerNormalization"),
    "com.microsoft.BiasGelu": Form(gelu="BiasGelu"),
    "com.microsoft.FastGelu (approximate)": Form(gelu="FastGelu"),
    "fused wherever it can be": Form(
        gelu="BiasGelu", attention="MultiHeadAttention", add_norm="SkipLayerNormalization"
    ),
}


class Reformed(_Encoder):
    """A BERT encoder (norms after, learned positions) with other operators."""

    form = Form()

    def activate(self, x: str, name: str) -> str:
        if self.form.gelu != "Erf":
            return super().activate(x, name)
        g = self.g
        grown = g.op("Add", g.op("Erf", g.op("Mul", x, g.scalar(0.5**0.5))), g.scalar(1.0))
        return g.op("Mul", g.op("Mul", x, g.scalar(0.5)), grown)

    def feed_forward(self, x: str, layer: str) -> str:
        if self.form.gelu not in ("BiasGelu", "FastGelu"):
            return super().feed_forward(x, layer)
        kernel, bias = self.array(layer, "mlp", "up", "kernel"), self.array(layer, "mlp", "up", "bias")
        assert kernel is not None
        assert bias is not None
        h = self.precision.linear(self.g, x, f"{layer}.mlp.up", kernel, None)
        h = self.g.op(self.form.gelu, h, self.g.weight(f"{layer}.mlp.up.bias", bias), domain=CONTRIB)
        return self.dense(h, layer, "mlp", "down")

    def add_and_norm(self, x: str, h: str, *path: str) -> str:
        if self.form.add_norm == "LayerNormalization":
            return self.norm(self.g.op("Add", x, h), *path)
        scale, bias = self.array(*path, "scale"), self.array(*path, "bias")
        assert scale is not None
        assert bias is not None
        weights = (self.g.weight(".".join((*path, name)), array) for name, array in (("scale", scale), ("bias", bias)))
        return self.g.op(self.form.add_norm, x, h, *weights, domain=CONTRIB, epsilon=self.c.norm_eps)

    def attention(self, q: str, k: str, v: str, window: int | None, at: str | None) -> str:
        if self.form.attention != "MultiHeadAttention":
            return super().attention(q, k, v, window, at)
        return self.g.op(self.form.attention, q, k, v, domain=CONTRIB, num_heads=self.c.heads)

    def layer(self, x: str, index: int, at: str | None, last: bool = False) -> str:
        name = f"layer_{index}"
        mixed = self.attention(*self.queries_keys_values(x, index, at, last), None, at)
        h = self.dense(mixed, name, "attention", "out")
        x = self.add_and_norm(x if at is None else self.take(x, at), h, name, "attention_norm")
        return self.add_and_norm(x, self.feed_forward(x, name), name, "mlp_norm")


def reformed(config: ModelConfig, params: Mapping[str, Any], precision: Precision, form: Form) -> Graph:
    if form == Form():
        return fill_mask_graph(config, params, precision)
    g = Graph("fill_mask", form.opset)
    ids = g.input("input_ids", np.int64, ("batch", "sequence"))
    at = g.input("positions", np.int64, ("batch", "masks"))
    encoder = Reformed(g, config, params, precision, ids, fused=form.attention == "Attention")
    encoder.form = form
    logits = encoder.vocabulary(encoder.hidden(at=at, apart=True), at)
    g.output("logits", logits, np.float32, ("batch", "masks", config.vocab_size))
    return g


# ---- sessions ------------------------------------------------------------------------------------


@dataclass
class Setting:
    """How onnxruntime runs a graph; the defaults are what FillMask does."""

    threads: int = 2
    waiting: int | None = 0
    """Microseconds that a thread without work waits awake for more; None: as long as onnxruntime's default."""
    level: str = "none"


@dataclass
class Variant:
    """A session, and what was measured of it."""

    session: ort.InferenceSession
    start_ms: float
    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in LENGTHS})


def opened(graph_file: Path, setting: Setting) -> Variant:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = setting.threads, 1
    options.graph_optimization_level = LEVELS[setting.level]
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(setting.waiting != 0)))
    if setting.waiting:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(setting.waiting))
    starts = []
    for _ in range(2):
        began = time.perf_counter()
        session = ort.InferenceSession(str(graph_file), options, providers=["CPUExecutionProvider"])
        starts.append(time.perf_counter() - began)
    return Variant(session, min(starts) * 1e3)


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Another process that wants a core of its own."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def queries(vocab_size: int, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random rows of one length, a position asked in each: the same at each call."""
    rng = np.random.default_rng(length)
    return rng.integers(5, vocab_size, (count, length)), rng.integers(1, length - 1, (count, 1))


def ask(session: ort.InferenceSession, ids: np.ndarray, at: np.ndarray) -> np.ndarray:
    return session.run(None, {"input_ids": ids, "positions": at})[0]


def compare(config: ModelConfig, variants: Mapping[str, Variant], turns: int) -> dict[str, Any]:
    """Times them in turns; figures are over what we ship."""
    asked = {kind: queries(config.vocab_size, length, 1) for kind, length in LENGTHS.items()}
    for turn in range(-1, turns):  # turn -1 warms up
        for variant in variants.values():
            for kind, query in asked.items():
                for _ in range(REPEAT[kind]):
                    began = time.perf_counter()
                    ask(variant.session, *query)
                    if turn >= 0:
                        variant.seconds[kind].append(time.perf_counter() - began)
    base = variants[SHIPPED]
    expected = ask(base.session, *asked["long"])
    rows = {}
    for name, variant in variants.items():
        ms = {kind: percentiles(variant.seconds[kind]) for kind in LENGTHS}
        ratio = {
            kind: statistics.median(variant.seconds[kind]) / statistics.median(base.seconds[kind]) for kind in LENGTHS
        }
        off = float(np.abs(ask(variant.session, *asked["long"]) - expected).max())
        rows[name] = {"ms": ms, "over_shipped": ratio, "start_ms": variant.start_ms, "largest_difference": off}
    return rows


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(seconds, p)) * 1e3 for p in (50, 90)}


# ---- batches -------------------------------------------------------------------------------------


def batches(config: ModelConfig, variant: Variant, turns: int) -> dict[str, Any]:
    """Milliseconds a text, of several together and of as many one by one; and what it does to the answers."""
    found: dict[str, Any] = {}
    for kind, length in LENGTHS.items():
        ids, at = queries(config.vocab_size, length, max(TEXTS, *BATCHES))
        together: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        apart: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        for turn in range(-1, turns):
            for batch in BATCHES:
                for seconds, rows in ((together, [slice(0, batch)]), (apart, [slice(i, i + 1) for i in range(batch)])):
                    began = time.perf_counter()
                    for row in rows:
                        ask(variant.session, ids[row], at[row])
                    if turn >= 0:
                        seconds[batch].append((time.perf_counter() - began) / batch)
        times = {
            str(batch): {
                "together_ms": statistics.median(together[batch]) * 1e3,
                "one_by_one_ms": statistics.median(apart[batch]) * 1e3,
            }
            for batch in BATCHES
        }
        found[kind] = {"a_text": times, "answers": answers(variant, ids[:TEXTS], at[:TEXTS])}
    return found


def answers(variant: Variant, ids: np.ndarray, at: np.ndarray) -> dict[str, dict[str, float]]:
    """How far answers in a batch are from those of each text alone."""
    alone = np.concatenate([ask(variant.session, ids[i : i + 1], at[i : i + 1]) for i in range(len(ids))])
    found = {}
    for batch in BATCHES[1:]:
        parts = [slice(i, i + batch) for i in range(0, len(ids), batch)]
        batched = np.concatenate([ask(variant.session, ids[part], at[part]) for part in parts])
        found[str(batch)] = {
            "same_first_answer": float((alone.argmax(-1) == batched.argmax(-1)).mean()),
            "rms_difference": float(np.square(alone - batched, dtype=np.float64).mean() ** 0.5),
            "logit_std": float(alone.std()),
        }
    return found


# ---- all of it -----------------------------------------------------------------------------------


def measure(shape: str, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    config = shaped(shape)
    config = replace(config, init_std=1.2 * config.width**-0.5)  # as far apart as after a training, so that errors show
    params = jax.device_get(init_params(config, jax.random.key(0)))
    usual = Setting(threads=options.threads)
    waiting = {"spinning": replace(usual, waiting=None), "waiting up to 30 µs": replace(usual, waiting=30)}
    settings = {
        SHIPPED: usual,
        **waiting,
        **{f"threads {n}": replace(usual, threads=n) for n in (1, 2, 4) if n != usual.threads},
        **{f"optimisations: {level}": replace(usual, level=level) for level in ("all", "extended", "basic")},
    }
    with tempfile.TemporaryDirectory(prefix="variants-", dir=options.scratch) as name:
        forms: dict[str, Variant] = {}
        for number, (title, form) in enumerate(FORMS.items()):
            file = Path(name) / f"{number}.onnx"
            reformed(config, params, PRECISIONS[dtype], form).write(file)
            forms[title] = opened(file, usual)
        result = {"shape": shape, "dtype": dtype, "forms": compare(config, forms, options.turns)}
        del forms
        gc.collect()
        shipped = Path(name) / "0.onnx"
        result["settings"] = compare(
            config, {title: opened(shipped, setting) for title, setting in settings.items()}, options.turns
        )
        gc.collect()
        with busy_neighbour():
            result[BUSY] = compare(
                config,
                {title: opened(shipped, setting) for title, setting in {SHIPPED: usual, **waiting}.items()},
                options.turns,
            )
        gc.collect()
        result["batches"] = batches(config, opened(shipped, usual), options.turns)
    return result


def table(result: Mapping[str, Any]) -> str:
    lines = [f"{result['shape']}, {result['dtype']}: median ms (times what we ship), session start, largest difference"]
    for group in ("forms", "settings", BUSY):
        lines += [f"  {BUSY}:"] if group == BUSY else []
        for title, row in result[group].items():
            cells = [f"{row['ms'][kind]['p50']:8.2f} ({row['over_shipped'][kind]:.2f}×)" for kind in LENGTHS]
            end = f"{row['start_ms']:7.0f} ms  {row['largest_difference']:.1e}"
            lines.append(f"  {title:40}{''.join(f'{cell:>20}' for cell in cells)}  {end}")
    for kind, facts in result["batches"].items():
        for batch, ms in facts["a_text"].items():
            line = f"  {kind}, {batch:>2} texts: {ms['together_ms']:.2f} ms a text together, "
            line += f"{ms['one_by_one_ms']:.2f} one by one"
            if batch in facts["answers"]:
                found = facts["answers"][batch]
                share = found["rms_difference"] / max(found["logit_std"], 1e-9)
                line += f"; {found['same_first_answer']:.1%} of first answers as alone, logits off by {share:.2%}"
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["bert-base"])
    parser.add_argument("--dtype", nargs="+", choices=tuple(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--scratch", type=Path, help="where graphs are written while it runs (default: /tmp)")
    parser.add_argument("--out", type=Path, default=RESULTS / "graph-variants.json")
    options = parser.parse_args()
    results = []
    for shape in options.shape:
        for dtype in options.dtype:
            results.append(measure(shape, dtype, options))
            print(table(results[-1]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    facts = {"command": command(sys.argv), "processor": processor(), "onnxruntime": ort.__version__}
    facts |= {"tokens": LENGTHS, "threads": options.threads, "turns": options.turns}
    options.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
