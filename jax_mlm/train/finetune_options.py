"""The options of `python -m jax_mlm.finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from jax_mlm.cli.options import Given
from jax_mlm.config import LARGEST, LAST_SEED, Range, check_ranges, from_json
from jax_mlm.errors import UserError
from jax_mlm.run.directory import RUN_FILE, read_object, read_run_file
from jax_mlm.train.duration import parse_budget

EXAMPLES = """examples:
  python -m jax_mlm.finetune --init runs/tiny --task classify --data train.tsv --valid dev.tsv
  python -m jax_mlm.finetune --init runs/tiny --task tag --data train.conll --valid dev.conll
  python -m jax_mlm.finetune --init bert-base/ --task classify --data pairs.csv --text question --pair answer
  python -m jax_mlm.finetune --init runs/tiny --task answer --data squad-train.json --valid squad-dev.json
  python -m jax_mlm.finetune --resume --out runs/tiny-classify"""

SEEDS_FILE = "seeds.json"
"""The options of a training with several seeds, in the folder of their runs."""
GROUPS = {
    "text": ("init", "task", "data", "valid", "test", "text", "pair", "label", "labels", "problem"),
    "duration and output": ("epochs", "budget", "patience", "metric", "seeds", "out", "resume", "json"),
    "training": ("lr", "batch", "length", "overlap", "class_weights", "freeze", "mesh", "seed"),
}

RANGES: Mapping[str, Range] = {
    "epochs": (0, 1_000_000),
    "lr": (0, 1e30),
    **dict.fromkeys(("batch", "length"), (0, 1 << 24)),
    "overlap": (-1, 1 << 24),
    "patience": (0, LARGEST),
    "freeze": (0, 1_000),
    "seeds": (1, 1_000),
    "seed": (0, LAST_SEED),
}
"""Number → the smallest and the largest that is taken."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tune a pretrained encoder on examples: to classify texts, tag the words in them, or find answers in them."""

    init: str = ""
    """The encoder: a run or a Hugging Face directory."""
    task: Literal["", "classify", "tag", "answer"] = ""
    """What to learn: a label for each text (or a number, or several labels), the entities in a text, or where the
    answer to a question stands in it."""
    data: str = ""
    """Examples to learn: .csv, .tsv, .jsonl or .parquet; CoNLL columns to tag; SQuAD's JSON to answer."""
    valid: str = ""
    """Examples for the figures that are reported. With --test they choose the checkpoint instead."""
    test: str = ""
    """Examples for the figures that are reported, where --valid chooses."""
    text: str = ""
    """The column of the text; without it text, or the only column beside the label's. To answer, context."""
    pair: str = ""
    """The column of a second text that is judged together with the first. To answer, that of the question."""
    label: str = ""
    """The column of the label; without it label. Several labels: a list in JSON, or a|b. To answer, that of the answer,
    whose first character is counted in answer_start (or in NAME_start)."""
    labels: str = ""
    """The labels, or the types of entities, in their order: a,b,c; without it those of the data, sorted."""
    problem: Literal["auto", "single", "multi", "regression"] = "auto"
    """One label a text, any number of them, or a number to predict; auto tells by the labels."""
    epochs: float = 0.0
    """Times that all examples are seen; 0 takes 3, 10 or 20, the more the fewer examples there are."""
    budget: str = ""
    """Train for this long instead: 90s, 30m, 2h."""
    patience: int = 0
    """End after so many validations (of about ten) without a better one; 0 goes on to the end."""
    metric: str = ""
    """By which the best checkpoint is chosen: accuracy, f1, macro_f1, micro_f1, mcc, pearson, spearman, rmse, exact,
    loss."""
    seeds: int = 1
    """Train so many times with different seeds; report mean and deviation, and keep the best."""
    out: str = ""
    """The run directory; empty takes the first free runs/NAME-TASK, runs/NAME-TASK-2, …"""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint."""
    json: bool = False
    """Print the figures as one JSON object."""
    lr: float = 0.0
    """Peak learning rate; 0 takes one for the width of the model: 2e-4 at 256, 1e-4 at 512, and 2.5 times as much for a
    run that began with random weights."""
    batch: int = 0
    """Rows in an optimizer step, each of several examples; 0 takes about 32 examples."""
    length: int = 0
    """Tokens in a row; longer texts are read in windows. 0 takes the longest text, up to 512."""
    overlap: int = -1
    """Tokens that two windows of a long text have in common; -1 takes a quarter of the length."""
    class_weights: str = ""
    """Weight of each label in the loss: balanced, or a=2,b=0.5."""
    freeze: int = 0
    """Leave the embeddings and so many of the first layers as they are; nothing is scaled down then."""
    mesh: str = ""
    """Devices along each axis: data=4,fsdp=2,tensor=1, say, as for training; empty puts all along data."""
    seed: int = 0
    """Seed of the fresh weights, the order and the dropout."""

    def __post_init__(self) -> None:
        if self.epochs and self.budget:
            raise ValueError("--epochs and --budget exclude each other: give one of them")
        check_ranges(self, RANGES)
        if self.seed + self.seeds - 1 > LAST_SEED:
            raise ValueError(f"--seed {self.seed} and --seeds {self.seeds}: the last seed must be at most {LAST_SEED}")
        if self.budget:
            parse_budget(self.budget)
        if self.test and not self.valid:
            raise ValueError("--test needs --valid: without it, --valid alone is what the figures are reported of")
        if self.task == "tag" and (self.pair or self.problem != "auto" or self.text or self.label):
            raise ValueError(
                "--task tag reads whole files of words or entities: leave out --text, --pair, --label, --problem"
            )
        if self.task == "answer" and (self.labels or self.problem != "auto" or self.class_weights):
            raise ValueError("--task answer finds texts: leave out --labels, --problem, --class-weights")


def defaults(given: Given) -> FinetuneConfig | None:
    """Return the options of the run to resume; None for a new run.

    --mesh alone may change, but not between several seeds: their batches could differ.
    """
    if not given.get("resume"):
        for name, what in (("init", "the encoder"), ("task", "classify, tag or answer"), ("data", "the examples")):
            if not given.get(name):
                raise UserError(f"--{name} is missing: {what}")
        return None
    if not given.get("out"):
        raise UserError("--resume needs --out DIR: the run directory to continue")
    before = options_of(Path(given["out"]))
    free = (
        ("resume", "out", "json") if (Path(given["out"]) / SEEDS_FILE).is_file() else ("resume", "out", "json", "mesh")
    )
    for name, value in given.items():
        if name not in free and value != getattr(before, name):
            raise UserError(
                f"--resume continues {given['out']} with its own options, but {name} differs from its {RUN_FILE}"
            )
    taken = {"mesh": given.get("mesh", before.mesh), "json": given.get("json", False)}
    return replace(before, resume=True, out=given["out"], **taken)


def options_of(run: Path) -> FinetuneConfig:
    """Return the options that a run, or a folder of one run a seed, was fine-tuned with."""
    several = run / SEEDS_FILE
    file = several if several.is_file() else run / RUN_FILE
    values = read_object(file) if file == several else read_run_file(run).get("finetune")
    if values is None:
        raise UserError(f"{run} was not made by python -m jax_mlm.finetune: continue it with python -m jax_mlm.train")
    try:
        return from_json(FinetuneConfig, values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: its options are not those of this version: {error}") from None
