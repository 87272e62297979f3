"""Time our training step and that of the Hugging Face model of the same shape in PyTorch, in turns; print the ratios.

    python benchmarks/training.py --peer-python ../reference/bin/python

Both sides take the same shape, batch, length, share of masked tokens, optimizer (AdamW, clipped), no dropout and number
of threads, and huge pages; they take short turns, so that a drift of the machine affects both. The peer is
`ModernBertForMaskedLM` with PyTorch's own attention and with its head at the masked positions only: in float32 as it
is, and in bfloat16 (autocast) compiled with `torch.compile`, which needs a C++ compiler. It needs the extra `reference`
in the venv that `--peer-python` names, which may be another Python than ours; without it, only our side is timed.

Each side is also compared with the best rate of matrix products that either side reaches in its type: of that rate, the
products of the step alone use the share that is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common.machine import command, processor

RESULTS = Path(__file__).parent / "results"
MASKED = 0.15
MATRIX = 2048
"""Rows, columns and inner axis of the product that measures the rate."""


@dataclass(frozen=True)
class Shape:
    """The shape of the model and batch on both sides."""

    width: int
    layers: int
    heads: int
    ff_width: int
    vocabulary: int
    batch: int
    length: int


SHAPES = {
    "4x256": Shape(256, 4, 4, 384, 8192, 32, 128),
    "8x512": Shape(512, 8, 8, 768, 16384, 8, 256),
    "12x768": Shape(768, 12, 12, 1152, 32768, 4, 128),
}
TYPES = ("float32", "bfloat16")
Step = Callable[[], float]
"""Takes a step, and returns the loss when it is done."""


def tokens(shape: Shape) -> np.ndarray:
    """Return random tokens, the same for both sides."""
    return np.random.default_rng(0).integers(5, shape.vocabulary, (shape.batch, shape.length), dtype=np.int32)


def jax_side(shape: Shape, dtype: str) -> tuple[Step, Step]:
    """Return our step as training runs it (masking, forward, backward, clipping, AdamW, schedule), and a product."""
    import jax
    import jax.numpy as jnp

    from jax_mlm.config import MaskConfig, ModelConfig, OptimConfig
    from jax_mlm.data.batches import Batch
    from jax_mlm.data.tokenizer import Vocabulary
    from jax_mlm.parallel.compile import compile_step
    from jax_mlm.tasks.mlm import masked_lm
    from jax_mlm.train.optim import Products, make_optimizer, make_schedule
    from jax_mlm.train.step import init_state, make_train_step

    model = ModelConfig(
        vocab_size=shape.vocabulary, width=shape.width, layers=shape.layers, heads=shape.heads, ff_width=shape.ff_width
    )
    vocabulary = Vocabulary(size=shape.vocabulary, pad=0, unk=1, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))
    optim, mask = OptimConfig(), MaskConfig(mask_rate=MASKED)
    tx, key = make_optimizer(optim, products=Products(jnp.dtype(dtype))), jax.random.key(0)
    task = masked_lm(model, mask, vocabulary, shape.length, jnp.dtype(dtype))
    step = make_train_step(task, tx, make_schedule(optim), key)
    at = np.tile(np.arange(shape.length, dtype=np.int32), (shape.batch, 1))
    batch = Batch(tokens(shape), np.ones_like(at), at, at, np.arange(shape.batch, dtype=np.int32))
    state = jax.jit(lambda key: init_state(task.init(key), tx))(key)
    horizon = np.int32(1000)
    compiled = compile_step(jax.jit(step, donate_argnums=0).lower(state, batch, horizon))

    def once() -> float:
        nonlocal state
        state, metrics = compiled(state, batch, horizon)
        return float(metrics.loss_sum)

    matrix = jnp.ones((MATRIX, MATRIX), dtype)
    product = compile_step(jax.jit(lambda x: x @ x).lower(matrix))
    return once, lambda: float(product(matrix)[0, 0])


def torch_side(shape: Shape, dtype: str, threads: int) -> tuple[Step, Step]:
    """Return a step of Hugging Face's model in PyTorch, compiled in bfloat16, and a product."""
    import torch
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.ff_width,
        max_position_embeddings=1024,
        global_attn_every_n_layers=1,
        pad_token_id=0,
        cls_token_id=2,
        bos_token_id=2,
        sep_token_id=3,
        eos_token_id=3,
    )
    config._attn_implementation = "sdpa"
    model = ModernBertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    ids = torch.from_numpy(tokens(shape)).long()
    seen = torch.ones_like(ids)
    count = int(np.ceil(MASKED * shape.length))
    at = torch.rand(ids.shape).topk(count, dim=1).indices.sort(dim=1).values
    chosen = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, at, True)
    hidden, targets = torch.where(chosen, 4, ids), ids[chosen]
    positions = (torch.arange(shape.batch)[:, None] * shape.length + at).reshape(-1)

    def loss_of() -> torch.Tensor:
        states = model.model(input_ids=hidden, attention_mask=seen)[0].reshape(-1, shape.width)[positions]
        return torch.nn.functional.cross_entropy(model.decoder(model.head(states)).float(), targets)

    reduced = dtype == "bfloat16"
    loss_of = torch.compile(loss_of) if reduced else loss_of

    def once() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    matrix = torch.ones(MATRIX, MATRIX, dtype=getattr(torch, dtype))
    return once, lambda: float((matrix @ matrix)[0, 0])


def work(side: str, shape: Shape, dtype: str, threads: int) -> None:
    """Serve one side: print its best rate of products; for each number on stdin, take that many steps in JSON."""
    once, product = jax_side(shape, dtype) if side == "ours" else torch_side(shape, dtype, threads)
    for _ in range(3):
        once()
        product()
    best = min(_seconds(product) for _ in range(7))
    print(json.dumps({"flops": 2 * MATRIX**3 / best}), flush=True)
    for line in sys.stdin:
        print(json.dumps([_seconds(once) for _ in range(int(line))]), flush=True)


def _seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


class Side:
    """A process that takes steps when it is asked to."""

    def __init__(self, side: str, name: str, dtype: str, threads: int, python: str) -> None:
        cpus = sorted(os.sched_getaffinity(0))[:threads]
        line = [python, __file__, "--work", side, dtype, "--shape", name, "--threads", str(threads)]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
        env["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # as training asks for
        root = str(Path(__file__).resolve().parent.parent)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            line, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )  # fmt: skip
        if not (said := self._read()):
            raise SystemExit(f"error: {side} did not start: is the extra 'reference' installed in {python}?")
        self.flops: float = json.loads(said)["flops"]
        self.turns: list[list[float]] = []

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def turn(self, steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        self.turns.append(json.loads(self._read()))


def measure(name: str, threads: int, turns: int, steps: int, peer_python: str | None) -> dict[str, Any]:
    """Alternate between the sides, `turns` times `steps` steps each; ratios are medians over the pairs of turns."""
    from jax_mlm.config import ModelConfig
    from jax_mlm.cost.flops import train_flops

    pythons = {"ours": sys.executable, **({"torch": peer_python} if peer_python else {})}
    sides = {
        (side, dtype): Side(side, name, dtype, threads, python) for side, python in pythons.items() for dtype in TYPES
    }
    for _ in range(turns):
        for side in sides.values():
            side.turn(steps)
    for side in sides.values():
        side.process.kill()
    s = SHAPES[name]
    model = ModelConfig(vocab_size=s.vocabulary, width=s.width, layers=s.layers, heads=s.heads, ff_width=s.ff_width)
    count = s.batch * s.length
    flops = train_flops(model, count, count * s.length, s.batch * np.ceil(MASKED * s.length))
    rates = {dtype: max(side.flops for (_, of), side in sides.items() if of == dtype) for dtype in TYPES}
    rows = []
    for (side, dtype), each in sides.items():
        median = statistics.median(second for turn in each.turns for second in turn)
        theirs = sides.get(("torch", dtype))
        pairs = zip(theirs.turns, each.turns, strict=True) if theirs and side == "ours" else ()
        ratios = [statistics.median(a) / statistics.median(b) for a, b in pairs]
        rows.append(
            {
                "side": side + (", compiled" if (side, dtype) == ("torch", "bfloat16") else ""),
                "dtype": dtype,
                "milliseconds": 1e3 * median,
                "tokens_per_second": count / median,
                "share_of_matrix_rate": flops / median / rates[dtype],
                "times_as_fast_as_torch": statistics.median(ratios) if ratios else None,
            }
        )
    return {"shape": name, **asdict(s), "threads": threads, "matrix_flops_per_second": rates, "sides": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps per turn")
    parser.add_argument("--peer-python", help="a Python with the extra 'reference' (torch and transformers 5)")
    parser.add_argument("--out", type=Path, default=RESULTS / "training-cpu.json")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        side, dtype = options.work
        work(side, SHAPES[options.shape[0]], dtype, options.threads)
        return
    from jax_mlm.version import package_version

    results = [measure(n, options.threads, options.turns, options.steps, options.peer_python) for n in options.shape]
    print(
        f"{'shape':8} {'side':16} {'type':10} {'ms/step':>9} {'tokens/s':>10} {'of products':>11} {'torch / ours':>12}"
    )
    for result in results:
        for row in result["sides"]:
            ratio = row["times_as_fast_as_torch"]
            print(
                f"{result['shape']:8} {row['side']:16} {row['dtype']:10} {row['milliseconds']:9.1f} "
                f"{row['tokens_per_second']:10,.0f} {row['share_of_matrix_rate']:11.0%} "
                f"{f'{ratio:.2f}' if ratio else '':>12}"
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    body = {"command": command(sys.argv), "machine": processor(), "jax": package_version("jax")}
    options.out.write_text(json.dumps({**body, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
