"""Training runs, and what they write."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from tokenizers import Tokenizer

from jax_mlm.config import ModelConfig, TrainConfig
from jax_mlm.presets import PRESETS
from jax_mlm.run.checkpoint import open_checkpoints, save
from jax_mlm.run.directory import write_run
from jax_mlm.train.__main__ import main

TINY = [
    "--preset", "tiny", "--width", "32", "--layers", "1", "--heads", "2", "--ff-width", "48", "--length", "32",
    "--batch", "8", "--eval-rows", "16", "--log-every", "5", "--lr", "3e-3", "--optimizer", "adamw",
]  # fmt: skip
"""What most runs are trained with: on the same text they share their compiled programs."""
SMALL = ["--length", "16", "--batch", "4", "--log-every", "1", "--eval-rows", "8", "--eval-every", "100"]
BRIEF = {"width": 32, "layers": 1, "heads": 2, "ff_width": 48}
"""The founding sentence's model for runs of a few steps: they share their compiled programs."""
REAL = ("bert-tiny-english", "albert-reactions", "roberta-antibody")


def train_line(*arguments: Any) -> int:
    """Run the command in this process; return its exit status."""
    return main([str(word) for word in arguments])


def stopped_after(steps: int) -> Callable[[], Any]:
    """Return what asks a run to stop once it has taken some steps."""

    @contextmanager
    def stopping() -> Iterator[Callable[[], int]]:
        calls = iter(range(10**6))
        yield lambda: int(next(calls) >= steps)

    return stopping


def one_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def run_json(command: list[str]) -> Any:
    """Run a command and return the JSON in its last line."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def save_run(path: Path, model: ModelConfig, params: Any, tokenizer: Tokenizer) -> Path:
    """Write a run that has trained for 7 steps on a.txt."""
    path.mkdir()
    write_run(path, TrainConfig(model=model, corpus=replace(PRESETS["sentence"].corpus)), {}, {"files": ["a.txt"]})
    tokenizer.save(str(path / "tokenizer.json"))
    line = {"kind": "valid", "step": 7, "loss": 1.5, "accuracy": 0.25}
    (path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    manager = open_checkpoints(path)
    save(manager, {"params": params, "step": jnp.int32(7)}, {"step": 7}, 1.5)
    manager.wait_until_finished()
    manager.close()
    return path
