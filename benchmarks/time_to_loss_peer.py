"""The peer of time_to_loss.py: transformers' Trainer on the same rows, measured on the same masks at given times.

It needs torch, transformers and accelerate, and is started by time_to_loss.py with a job in JSON. The rate falls
linearly over the time instead of over steps, whose number nobody knows before; evaluations stop the clock.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from transformers import (
    DataCollatorForLanguageModeling,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

TOGETHER = 64
"""Texts that are evaluated at once."""


class Rows(torch.utils.data.Dataset):
    """Full rows, as run_mlm.py makes them."""

    def __init__(self, rows: np.ndarray, special: list[int]) -> None:
        self.rows, self.special = rows, special

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        row = self.rows[number].astype(np.int64)
        return {
            "input_ids": row,
            "attention_mask": np.ones_like(row),
            "special_tokens_mask": np.isin(row, self.special).astype(np.int64),
        }


class Timer:
    """The time of training, and the curve of the loss along it."""

    def __init__(self, budget: float, marks: list[float], warmup: float) -> None:
        self.budget, self.marks, self.warmup = budget, [budget * mark for mark in marks], warmup
        self.began: float | None = None

    @property
    def elapsed(self) -> float:
        return 0.0 if self.began is None else time.perf_counter() - self.began

    @contextmanager
    def stopped(self) -> Iterator[None]:
        at = time.perf_counter()
        yield
        assert self.began is not None
        self.began += time.perf_counter() - at

    def factor(self, _: int) -> float:
        """Return the learning rate as a share of its peak."""
        share = self.elapsed / self.budget
        rising = min(1.0, share / self.warmup) if self.warmup else 1.0
        return rising * max(0.0, min(1.0, (1 - share) / (1 - self.warmup)))


class Held:
    """Masked texts, each of which is a document or a part of one that is alone in its row."""

    def __init__(self, file: Path, device: torch.device) -> None:
        with np.load(file) as arrays:
            self.ids, self.labels, self.starts = arrays["ids"], arrays["labels"], arrays["starts"]
            part = arrays["part"]
        self.device, self.sizes = device, np.diff(self.starts)
        self.part, self.rest = np.flatnonzero(part), np.flatnonzero(~part)

    def sums(self, model: ModernBertForMaskedLM, texts: np.ndarray) -> np.ndarray:
        """Return the loss, the right answers and the targets, summed, in float32; the model is left as it was."""
        training, total = model.training, np.zeros(3)
        model.eval()
        order = texts[np.argsort(self.sizes[texts], kind="stable")]
        with torch.no_grad():
            for at in range(0, len(order), TOGETHER):
                total += self._batch(model, order[at : at + TOGETHER])
        model.train(training)
        return total

    def _batch(self, model: ModernBertForMaskedLM, texts: np.ndarray) -> np.ndarray:
        length = int(self.sizes[texts].max())
        ids, labels = np.zeros((len(texts), length), np.int64), np.full((len(texts), length), -100, np.int64)
        seen = np.arange(length) < self.sizes[texts][:, None]
        for row, text in enumerate(texts):
            at = slice(self.starts[text], self.starts[text + 1])
            ids[row, : self.sizes[text]], labels[row, : self.sizes[text]] = self.ids[at], self.labels[at]
        ids, labels, seen = (torch.from_numpy(each).to(self.device) for each in (ids, labels, seen))
        states = model.model(input_ids=ids, attention_mask=seen.long())[0][labels >= 0]
        logits, targets = model.decoder(model.head(states)).float(), labels[labels >= 0]
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return np.array([float(loss), float((logits.argmax(-1) == targets).sum()), len(targets)])


class Watch(TrainerCallback):
    """Evaluates when a mark is passed, and ends the training when the time is up."""

    def __init__(self, timer: Timer, held: Held) -> None:
        self.timer, self.held, self.curve = timer, held, []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.timer.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        timer = self.timer
        control.should_training_stop = timer.elapsed >= timer.budget
        if control.should_training_stop or not timer.marks or timer.elapsed < timer.marks[0]:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = timer.elapsed
        timer.marks = [mark for mark in timer.marks if mark > seconds]
        with timer.stopped():
            loss, right, count = self.held.sums(model, self.held.part)
            self.curve.append([round(seconds, 2), loss / count, right / count])


class TimedTrainer(Trainer):
    """Its learning rate follows the clock."""

    timer: Timer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.timer.factor)
        return self.lr_scheduler


def train(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train on the files of a folder for the time of a job; return the curve and the final figures."""
    vocabulary = json.loads((folder / "vocabulary.json").read_text())
    roles = {f"{role}_token": vocabulary[role] for role in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **roles)
    arguments = {name: job[name] for name in ("learning_rate", "per_device_train_batch_size", "bf16", "seed")}
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as out:
        given = TrainingArguments(
            out,
            **arguments,
            max_steps=1 << 30,
            use_cpu=not cuda,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=cuda,
        )
        torch.manual_seed(job["seed"])
        config = ModernBertConfig.from_pretrained(folder, sparse_prediction=job["sparse_prediction"])
        model = ModernBertForMaskedLM(config)
        timer = Timer(job["budget"], job["marks"], job["warmup"])
        rows = Rows(np.load(folder / "train.npy", mmap_mode="r"), vocabulary["special"])
        trainer = TimedTrainer(model, given, DataCollatorForLanguageModeling(tokenizer), rows)
        trainer.timer, held = timer, Held(folder / "valid.npz", given.device)
        watch = Watch(timer, held)
        trainer.add_callback(watch)
        trainer.train()
        if cuda:
            torch.cuda.synchronize()
        seconds = timer.elapsed
        part = held.sums(model, held.part)
    loss, right, count = part + held.sums(model, held.rest)
    steps = trainer.state.global_step
    return {
        "loss": loss / count,
        "accuracy": right / count,
        "targets": int(count),
        "steps": steps,
        "seconds": round(seconds, 2),
        "curve": [*watch.curve, [round(seconds, 2), part[0] / part[2], part[1] / part[2]]],
        "tokens": steps * job["per_device_train_batch_size"] * rows.rows.shape[1],
        "dtype": "bfloat16" if job["bf16"] else "float32",
        "parameters": model.num_parameters(),
        "settings": {
            "optimizer": str(given.optim),
            "betas": [given.adam_beta1, given.adam_beta2],
            "weight_decay": given.weight_decay,
            "max_grad_norm": given.max_grad_norm,
            "warmup": job["warmup"],
            "sparse_prediction": job["sparse_prediction"],
            **arguments,
        },
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "threads": torch.get_num_threads(),
        },
        "device": {"backend": "gpu" if cuda else "cpu", "kind": torch.cuda.get_device_name() if cuda else "cpu"},
    }


def main() -> None:
    job = json.loads(sys.argv[-1])
    transformers.logging.set_verbosity_error()
    found = train(job, Path(job["folder"]))
    if not math.isfinite(found["loss"]):
        raise SystemExit(f"error: the loss of the peer at a rate of {job['learning_rate']} is not finite")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
