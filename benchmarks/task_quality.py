"""Measure what pretraining is worth to a task: fine-tune a pretrained run, and its architecture from random weights.

    python -m jax_mlm.train --data 'books/train-0*.txt.xz' --valid books/valid.txt --lowercase --budget 30m --out RUN
    python benchmarks/task_quality.py RUN sst2 --train sst2/train.tsv --dev sst2/dev.tsv
    python benchmarks/task_quality.py RUN wnut17 --train wnut17train.conll --dev emerging.dev.conll
    python benchmarks/task_quality.py RUN squad --train squad_sample_train.json --dev squad_sample_valid.json

Both sides choose among the same learning rates, and then among the same numbers of epochs, with one seed, by the 5 % of
the training file that fine-tuning holds out; what they choose is trained with each seed, and those runs alone read the
development file, once each. Arms that the result has already are not run again, so that it may be stopped and
continued; another RUN, other rates or epochs, or another size that matrices are scaled down to before fine-tuning,
begin anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.machine import command, processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TASKS = {"sst2": ("classify", "accuracy"), "wnut17": ("tag", "f1"), "squad": ("answer", "f1")}
"""What each data set is fine-tuned for, and the metric that is reported."""
SIDES = ("pretrained", "random")
RATES = {"sst2": (1e-4, 3e-4, 5e-4, 1e-3), "wnut17": (2.5e-4, 5e-4, 1e-3, 2e-3), "squad": (2e-4, 5e-4, 1e-3, 2e-3)}
"""Learning rates that both sides choose among, each trained for the first number of epochs."""
EPOCHS = {"sst2": (1, 2, 3), "wnut17": (10, 20), "squad": (1, 3)}
"""Numbers of epochs that both sides choose among, at the rate that they chose."""
Arm = dict[str, Any]


def untrained(run: Path, text: Path, folder: Path) -> Path:
    """Return a run of the same configuration and tokenizer whose weights are as they were before the first step."""
    from jax_mlm.run.directory import read_run
    from jax_mlm.train.loop import train

    some = folder / "some.txt"
    some.write_text(text.read_text(encoding="utf-8")[:200_000], encoding="utf-8")  # nothing is learned from it
    before = read_run(run)
    still = replace(before.optim, optimizer="adamw", lr=1e-30, weight_decay=0.0)
    given = {"data": (str(some),), "valid": (), "tokenizer": str(run / "tokenizer.json"), "out": str(folder / "random")}
    return train(replace(before, **given, init="", embeddings="random", budget="", steps=1, eval_every=0, optim=still))


def _jax_mlm(name: str, *options: str) -> str:
    """Run a command of ours, and return what it prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", f"jax_mlm.{name}", *options], env=env, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"error: jax_mlm.{name} ended with status {done.returncode}")
    return done.stdout


def trained(init: Path, task: str, arm: Arm, train: Path, dev: Path | None) -> Arm:
    """Fine-tune once; return the arm with its score on the development file, or on the part that was held out."""
    kind, metric = TASKS[task]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--init", str(init), "--task", kind, "--data", str(train), "--out", f"{folder}/run", "--json"]
        options += ["--metric", metric]
        for name in ("lr", "epochs", "seed"):
            options += [f"--{name}", str(arm[name])]
        options += ["--valid", str(dev)] if dev else []
        scores = json.loads(_jax_mlm("finetune", *options).splitlines()[-1])
    return {
        **arm,
        "held out": scores["choosing"][metric],
        "step": scores["step"],
        **({"dev": scores[metric]} if dev else {}),
    }


def best_of(tried: Iterable[Arm]) -> Arm:
    """Return the arm with the best score on what was held out."""
    return max(tried, key=lambda each: each["held out"])


def table(task: str, arms: list[Arm]) -> dict[str, Any]:
    """Return each side's rate, seeds, mean and deviation, and what the difference is worth in points."""
    rows: dict[str, Any] = {}
    for side in SIDES:
        final = [arm for arm in arms if arm["side"] == side and "dev" in arm]
        if final:
            values = [arm["dev"] for arm in final]
            spread = statistics.stdev(values) if len(values) > 1 else None
            rows[side] = {
                "learning rate": final[0]["lr"],
                "epochs": final[0]["epochs"],
                TASKS[task][1]: values,
                "mean": statistics.fmean(values),
                "deviation": spread,
            }
    if len(rows) == len(SIDES):
        rows["points gained"] = 100 * (rows["pretrained"]["mean"] - rows["random"]["mean"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a pretrained run")
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    out = RESULTS / f"quality-{given.task}.json"
    pretrained = json.loads((given.run / "run.json").read_text())
    from jax_mlm.train.pretrained import LARGEST

    identity = hashlib.sha256((given.run / "run.json").read_bytes()).hexdigest()[:16]
    result = json.loads(out.read_text()) if out.is_file() else {}
    tried = {"rates": list(RATES[given.task]), "epochs": list(EPOCHS[given.task])}
    if (result.get("run"), result.get("scaled above"), result.get("tried")) != (identity, LARGEST, tried):
        options = {name: pretrained["config"][name] for name in ("preset", "budget", "dtype", "batch", "optim")}
        last = [json.loads(line) for line in (given.run / "metrics.jsonl").read_text().splitlines()]
        valid = next((line for line in reversed(last) if line["kind"] == "final"), None)
        result = {
            "run": identity,
            "scaled above": LARGEST,
            "tried": tried,
            "pretraining": {**options, "versions": pretrained["versions"], "final": valid},
            "arms": [],
        }
    result |= {"command": command(sys.argv), "processor": processor()}
    arms: list[Arm] = result["arms"]

    def arm(init: Path, wanted: Arm, dev: Path | None) -> Arm:
        same = [
            each
            for each in arms
            if all(each.get(name) == value for name, value in wanted.items()) and ("dev" in each) == bool(dev)
        ]
        if not same:
            same = [trained(init, given.task, wanted, given.train, dev)]
            arms.append(same[0])
            result["table"] = table(given.task, arms)
            out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(json.dumps(same[0]), flush=True)
        return same[0]

    with tempfile.TemporaryDirectory() as folder:
        inits = {"pretrained": given.run, "random": untrained(given.run, given.train, Path(folder))}
        best = {}
        for side, init in inits.items():

            def tuned(lr: float, epochs: int, side: str = side, init: Path = init) -> Arm:
                return arm(init, {"side": side, "lr": lr, "epochs": epochs, "seed": 0}, None)

            fewest, *more = EPOCHS[given.task]
            first = best_of(tuned(rate, fewest) for rate in RATES[given.task])
            best[side] = best_of([first, *(tuned(first["lr"], epochs) for epochs in more)])
        for seed in range(given.seeds):
            for side, init in inits.items():
                chosen = {name: best[side][name] for name in ("lr", "epochs")}
                arm(init, {"side": side, **chosen, "seed": seed}, given.dev)
    print(json.dumps(result["table"], indent=1))


if __name__ == "__main__":
    main()
