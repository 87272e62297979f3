"""Time our training step and the Hugging Face PyTorch model of the same shape, side by side, and print the ratio.

    python benchmarks/training.py --shape tiny small --peer-python ../reference/bin/python

Both sides use the same shape, batch, length, masked fraction, optimizer (AdamW, clipped), no dropout, float32
and number of threads, and take short turns, so that a drift of the machine affects both. The peer is
`ModernBertForMaskedLM` with its head over every position, and once more with its head at the masked positions only.
The peer needs the extra `reference` in the venv that `--peer-python` names; without it, only our side is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
MASKED = 0.15


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
    "tiny": Shape(256, 4, 4, 384, 8192, 32, 128),
    "small": Shape(512, 8, 8, 768, 16384, 8, 256),
}


def tokens(shape: Shape) -> np.ndarray:
    """Return random tokens, the same for both sides."""
    return np.random.default_rng(0).integers(5, shape.vocabulary, (shape.batch, shape.length), dtype=np.int32)


def jax_step(shape: Shape) -> Callable[[], float]:
    """Return our step as training runs it: masking, forward, backward, clipping, AdamW, schedule."""
    import jax
    import jax.numpy as jnp

    from jax_mlm.config import MaskConfig, ModelConfig, OptimConfig
    from jax_mlm.data.batches import Batch
    from jax_mlm.data.tokenizer import Vocabulary
    from jax_mlm.parallel.compile import compile_step
    from jax_mlm.tasks.mlm import masked_lm
    from jax_mlm.train.optim import make_optimizer, make_schedule
    from jax_mlm.train.step import init_state, make_train_step

    model = ModelConfig(
        vocab_size=shape.vocabulary, width=shape.width, layers=shape.layers, heads=shape.heads, ff_width=shape.ff_width
    )
    vocabulary = Vocabulary(size=shape.vocabulary, pad=0, unk=1, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))
    optim, mask = OptimConfig(), MaskConfig(mask_rate=MASKED)
    tx, key = make_optimizer(optim), jax.random.key(0)
    task = masked_lm(model, mask, vocabulary, shape.length, jnp.float32)
    step = make_train_step(task, tx, make_schedule(optim), key)
    at = np.tile(np.arange(shape.length, dtype=np.int32), (shape.batch, 1))
    batch = Batch(tokens(shape), np.ones_like(at), at, at, np.arange(shape.batch, dtype=np.int32))
    state = init_state(task.init(key), tx)
    horizon = np.int32(1000)
    compiled = compile_step(jax.jit(step, donate_argnums=0).lower(state, batch, horizon))

    def once() -> float:
        nonlocal state
        state, metrics = compiled(state, batch, horizon)
        return float(metrics.loss_sum)

    return once


def torch_step(shape: Shape, masked_head: bool, threads: int) -> Callable[[], float]:
    """Return a step of Hugging Face's model in plain PyTorch."""
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
    model = ModernBertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    ids = torch.from_numpy(tokens(shape)).long()
    seen = torch.ones_like(ids)
    count = int(np.ceil(MASKED * shape.length))
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen.scatter_(1, torch.rand(ids.shape).topk(count, dim=1).indices, True)
    hidden = torch.where(chosen, 4, ids)
    labels = torch.where(chosen, ids, -100)

    def once() -> float:
        optimizer.zero_grad(set_to_none=True)
        if masked_head:
            states = model.model(input_ids=hidden, attention_mask=seen)[0][chosen]
            loss = torch.nn.functional.cross_entropy(model.decoder(model.head(states)), ids[chosen])
        else:
            loss = model(input_ids=hidden, attention_mask=seen, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return once


SIDES = ("ours", "peer", "peer, masked head")


def work(side: str, shape: Shape, threads: int) -> None:
    """Serve one side: for each number on stdin, take that many steps and print their seconds as JSON."""
    once = jax_step(shape) if side == "ours" else torch_step(shape, side != "peer", threads)
    for _ in range(2):
        once()
    print("ready", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)


def start(side: str, name: str, threads: int, python: str) -> subprocess.Popen[str]:
    """Start a side and wait until it is compiled and warm."""
    cpus = sorted(os.sched_getaffinity(0))[:threads]
    command = [python, __file__, "--work", side, "--shape", name, "--threads", str(threads)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    root = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )  # fmt: skip
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise SystemExit(f"error: {side} did not start: is the extra 'reference' installed in {python}?")
    return process


def measure(name: str, threads: int, turns: int, steps: int, peer_python: str | None) -> dict[str, object]:
    """Alternate between the sides, `turns` times `steps` steps each, and return medians."""
    sides = SIDES if peer_python else SIDES[:1]
    processes = {
        side: start(side, name, threads, sys.executable if side == "ours" else str(peer_python)) for side in sides
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(turns):
        for side, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            seconds[side] += json.loads(process.stdout.readline())
    for process in processes.values():
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()
    shape = SHAPES[name]
    rows = {}
    for side in sides:
        median = statistics.median(seconds[side])
        turn_medians = [statistics.median(seconds[side][i : i + steps]) for i in range(0, len(seconds[side]), steps)]
        rows[side] = {
            "milliseconds": 1e3 * median,
            "tokens_per_second": shape.batch * shape.length / median,
            "turn_medians_ms": [round(1e3 * s, 1) for s in turn_medians],
        }
    ours = rows["ours"]["milliseconds"]
    ratios = {side: rows[side]["milliseconds"] / ours for side in sides if side != "ours"}
    return {"shape": name, **asdict(shape), "threads": threads, "sides": rows, "ratio_to_ours": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["tiny", "small"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="steps per turn")
    parser.add_argument("--peer-python", help="a Python with the extra 'reference' (torch and transformers 5)")
    parser.add_argument("--out", type=Path, default=RESULTS / "training-cpu.json")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, SHAPES[options.shape[0]], options.threads)
        return
    results = [measure(n, options.threads, options.turns, options.steps, options.peer_python) for n in options.shape]
    print(f"{'shape':8} {'side':20} {'ms/step':>10} {'tokens/s':>10} {'peer / ours':>12}")
    for result in results:
        for side, row in result["sides"].items():  # type: ignore[attr-defined]
            ratio = result["ratio_to_ours"].get(side)  # type: ignore[attr-defined]
            shown = f"{ratio:.2f}" if ratio else ""
            speed = f"{row['milliseconds']:10.1f} {row['tokens_per_second']:10,.0f}"
            print(f"{result['shape']:8} {side:20} {speed} {shown:>12}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "command": " ".join(["python benchmarks/training.py --shape", *options.shape, "--peer-python PYTHON"]),
        "machine": platform.processor(),
    }
    options.out.write_text(json.dumps({**body, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
