"""Measure how many examples a second fine-tuning learns from, beside transformers' Trainer on the same model.

    python -m jax_mlm.hf export RUN HF
    python benchmarks/finetuning.py RUN HF TRAIN.tsv --peer-python ../reference/bin/python

Both sides start from the same weights, read the same examples, take 32 of them a step on average, with AdamW, clipping,
dropout of 0.1 and the same number of threads, and take short turns, so that a drift of the machine affects both. We
compute in the type that fine-tuning chooses for the machine, the peer in float32, as its script does. The peer pads to
128 tokens, which its script run_glue.py does unless told otherwise, or to the longest text of a batch. It needs
transformers, torch and accelerate in the venv that `--peer-python` names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from common.machine import command, processor

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "finetuning.json"
EXAMPLES, LENGTH = 32, 128
"""Examples in a step of the peer, and the tokens that its script pads them to."""
Turn = Callable[[int], tuple[float, int]]
"""Steps → the seconds that they took, and the examples in them."""


def ours(run: str, table: str) -> Turn:
    import jax
    import numpy as np

    from jax_mlm.data.batches import batch_at
    from jax_mlm.parallel.compile import compile_step, compute_dtype
    from jax_mlm.train.finetune_options import FinetuneConfig
    from jax_mlm.train.finetuning import plan, set_up_plan
    from jax_mlm.train.optim import Products, make_optimizer, make_schedule
    from jax_mlm.train.step import init_state, make_train_step

    with tempfile.TemporaryDirectory() as folder:
        planned = plan(FinetuneConfig(init=run, task="classify", data=table, out=f"{folder}/run"))
        config, data = planned.config, planned.data.train
        setup = set_up_plan(planned, config, Path(folder) / "run")
    assert planned.start is not None
    tx = make_optimizer(config.optim, setup.task.fixed, Products(compute_dtype(config), setup.mesh))
    step = jax.jit(make_train_step(setup.task, tx, make_schedule(config.optim), jax.random.key(0), 1), donate_argnums=0)
    state, done = jax.jit(lambda params: init_state(params, tx))(planned.start.params), 0
    controls = np.int32(1000), None, np.float32(np.inf), np.int32(0)
    step = compile_step(step.lower(state, batch_at(data, 0, config.seed, config.batch, (0, 1)), *controls))

    def turn(steps: int) -> tuple[float, int]:
        nonlocal state, done
        began, seen = time.perf_counter(), 0
        for number in range(done, done + steps):
            batch = batch_at(data, number, config.seed, config.batch, (0, 1))
            seen += int((np.asarray(batch.items) >= 0).sum())
            state, metrics = step(state, batch, *controls)
        jax.block_until_ready(metrics)
        done += steps
        return time.perf_counter() - began, seen

    return turn


def trainer(folder: str, table: str, to_longest: bool) -> Turn:
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = [line.rsplit("\t", 1) for line in Path(table).read_text(encoding="utf-8").splitlines()[1:4001]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    padding = {} if to_longest else {"padding": "max_length"}
    encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=LENGTH, **padding)
    examples = [
        {**{name: encoded[name][i] for name in encoded}, "labels": int(label)} for i, (_, label) in enumerate(rows)
    ]
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)

    def turn(steps: int) -> tuple[float, int]:
        with tempfile.TemporaryDirectory() as out:
            arguments = TrainingArguments(
                out,
                max_steps=steps,
                per_device_train_batch_size=EXAMPLES,
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            made = Trainer(model, arguments, train_dataset=examples, data_collator=DataCollatorWithPadding(tokenizer))
            began = time.perf_counter()
            made.train()
            return time.perf_counter() - began, steps * EXAMPLES

    return turn


def worker(side: str, given: str, table: str) -> None:
    """Answer lines of numbers of steps on stdin with seconds and examples."""
    turn = ours(given, table) if side == "ours" else trainer(given, table, side == "longest")
    turn(2)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(int(line))), flush=True)


def launch(python: str, side: str, given: Path, table: Path, threads: int) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    env["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # as training asks for
    env["PYTHONPATH"] = str(ROOT) if side == "ours" else ""
    line = [python, __file__, "worker", side, str(given), str(table)]
    process = subprocess.Popen(line, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while (said := process.stdout.readline()).strip() != "ready":
        if not said:
            raise SystemExit(f"error: {side} did not start")
    return process


def ask(process: subprocess.Popen[str], steps: int) -> float:
    """Return the examples a second."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    while True:
        line = process.stdout.readline()
        if line.startswith("["):  # the Trainer prints its own summary
            seconds, examples = json.loads(line)
            return examples / seconds
        assert line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a pretrained run")
    parser.add_argument("hf", type=Path, help="the same, exported to Hugging Face's layout")
    parser.add_argument("table", type=Path, help="SST-2's train.tsv, or one like it: a text and 0 or 1")
    parser.add_argument("--peer-python", required=True, help="a Python that has transformers, torch and accelerate")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=7)
    given = parser.parse_args()
    sides = {
        "ours, packed": launch(sys.executable, "ours", given.run, given.table, given.threads),
        "Trainer, padded to 128": launch(given.peer_python, "padded", given.hf, given.table, given.threads),
        "Trainer, padded to the longest": launch(given.peer_python, "longest", given.hf, given.table, given.threads),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.turns):
        for name, process in sides.items():
            rates[name].append(ask(process, 8))
    for process in sides.values():
        process.kill()
    first, *peers = rates
    result = {
        "command": command(sys.argv),
        "processor": processor(),
        "threads": given.threads,
        "examples a second": {name: statistics.median(each) for name, each in rates.items()},
        "times as fast as": {
            name: statistics.median(a / b for a, b in zip(rates[first], rates[name], strict=True)) for name in peers
        },
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:5])
    else:
        main()
