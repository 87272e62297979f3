"""The parts of the recipe, and what each could be: the arms that `ablations.py` compares with one recipe."""

from __future__ import annotations

from typing import NamedTuple

BASE = {
    "--mask-rate": "0.15",
    "--global-every": "1",
    "--weight-decay": "0.01",
    "--embeddings": "random",
    "--decay": "0.3",
}
"""What the earlier recipe has where today's defaults differ; an arm is that recipe with one lever changed."""


class Arm(NamedTuple):
    """The earlier recipe but for one lever."""

    name: str
    options: tuple[str, ...] = ()
    """Words of the command line of `python -m jax_mlm.train`."""
    how: str = ""
    """What no option gives: mean, the mean of the states of the last fifth; apart, Q, K and V orthogonalised apart; or
    one of `texts.TEXTS`."""
    missing: str = ""
    """Why it cannot be measured yet."""
    won: bool = False
    """Whether it is a default now, instead of the lever's first arm."""

    def settings(self) -> tuple[str, ...]:
        """Return its options, and those of the earlier recipe that they do not replace."""
        others = (pair for pair in BASE.items() if pair[0] not in self.options)
        return (*(word for pair in others for word in pair), *self.options)


class Lever(NamedTuple):
    """A part of the recipe, and what it could be; the first arm stands for the recipe that the others differ from."""

    name: str
    arms: tuple[Arm, ...]
    by: str = "loss"
    """The figure that arms are compared by, where the losses of two mean different things."""


DEFAULTS = "defaults"
"""The name of the record of a lever's first arm, which all levers share."""
BY_TIME = ("size", "batch")
"""Levers of which more than one time is shown."""
ONE_SHAPE = "the step is compiled for one shape of batch"


_TOGETHER = (
    *("--mask-rate", "0.4", "--mask-rate-end", "0.15", "--weight-decay", "0.1"),
    *("--global-every", "2", "--local-window", "16"),
)


def _lever(name: str, default: str, *others: Arm, by: str = "loss") -> Lever:
    return Lever(name, (Arm(default), *others), by)


LEVERS = (
    _lever(
        "size",
        "4×256",
        Arm("2×128", ("--layers", "2", "--width", "128", "--heads", "2", "--ff-width", "192")),
        Arm("2×256", ("--layers", "2")),
        Arm("6×384", ("--layers", "6", "--width", "384", "--heads", "6", "--ff-width", "576")),
    ),
    _lever("optimizer", "Muon", Arm("AdamW", ("--optimizer", "adamw"))),
    _lever(
        "mask rate",
        "15 %",
        Arm("30 %", ("--mask-rate", "0.3")),
        Arm("40 %", ("--mask-rate", "0.4")),
        Arm("30 → 15 %", ("--mask-rate", "0.3", "--mask-rate-end", "0.15")),
        Arm("40 → 15 %", ("--mask-rate", "0.4", "--mask-rate-end", "0.15"), won=True),
        Arm("60 → 15 %", ("--mask-rate", "0.6", "--mask-rate-end", "0.15")),
    ),
    _lever("replacement", "80/10/10", Arm("all [MASK]", ("--mask-token", "1", "--mask-random", "0"))),
    _lever(
        "batch",
        "32",
        Arm("64", ("--batch", "64")),
        Arm("16", ("--batch", "16")),
        Arm("8", ("--batch", "8")),
        Arm("8 → 32", missing=ONE_SHAPE),
    ),
    _lever("length", "128", Arm("64", ("--length", "64")), Arm("64 → 128", missing=ONE_SHAPE)),
    _lever(
        "schedule",
        "stable, then 30 % decay",
        Arm("stable, then 55 % decay", ("--decay", "0.55"), won=True),
        Arm("linear to zero", ("--schedule", "linear")),
        Arm("cosine", ("--schedule", "cosine")),
    ),
    _lever(
        "vocabulary",
        "8,192",
        Arm("4,096", ("--tokenizer-limit", "4096")),
        Arm("16,384", ("--tokenizer-limit", "16384")),
        Arm("32,768", ("--tokenizer-limit", "32768")),
        by="bits_per_byte",
    ),
    _lever(
        "depth × width",
        "4×256",
        Arm("2×384", ("--layers", "2", "--width", "384", "--heads", "6", "--ff-width", "448")),
        Arm("7×192", ("--layers", "7", "--width", "192", "--heads", "3", "--ff-width", "288")),
    ),
    _lever(
        "learning rates",
        "×1",
        Arm("×2", ("--lr", "4e-3", "--muon-lr", "0.024")),
    ),
    _lever(
        "attention",
        "global",
        Arm("every 2nd layer ±8", ("--global-every", "2", "--local-window", "16"), won=True),
        Arm("every 2nd layer ±16", ("--global-every", "2", "--local-window", "32")),
        Arm("3 layers of 4 ±8", ("--global-every", "4", "--local-window", "16")),
    ),
    _lever(
        "several",
        "none",
        Arm("masks 40 → 15 %, decay 0.1, every 2nd layer ±8", _TOGETHER),
        Arm("the same, 3 layers of 4 ±8", (*_TOGETHER, "--global-every", "4")),
        Arm("the same, rates ×0.5", (*_TOGETHER, "--lr", "1e-3", "--muon-lr", "0.006")),
        Arm("the same, rates ×2", (*_TOGETHER, "--lr", "4e-3", "--muon-lr", "0.024")),
        Arm("the same, counted embeddings", (*_TOGETHER, "--embeddings", "counted")),
        Arm("counted embeddings, 55 % decay too", (*_TOGETHER, "--embeddings", "counted", "--decay", "0.55"), won=True),
    ),
    _lever("embeddings", "random", Arm("counted", ("--embeddings", "counted"), won=True)),
    _lever("rotary base", "10,000", Arm("1,000", ("--rope-theta", "1000"))),
    _lever("documents", "isolated", Arm("crossing", ("--pack", "plain"))),
    _lever(
        "text",
        "as it is",
        Arm("copies dropped", ("--dedup",)),
        Arm("a document a sentence", how="sentences"),
        Arm("documents shuffled", how="shuffled"),
        Arm("headings left out", how="prose"),
        by="bits_per_byte",
    ),
    _lever("averaging", "none", Arm("mean of the last fifth", how="mean")),
    _lever("Muon's Q, K and V", "together", Arm("apart", how="apart")),
    _lever(
        "weight decay", "0.01", Arm("0", ("--weight-decay", "0")), Arm("0.1", ("--weight-decay", "0.1"), won=True),
        Arm("0.3", ("--weight-decay", "0.3")),
    ),
    _lever(
        "initialisation",
        "0.02",
        Arm("0.01", ("--init-std", "0.01")),
        Arm("0.04", ("--init-std", "0.04")),
        Arm("smaller with depth", missing="there is one deviation for all matrices"),
    ),
)  # fmt: skip
"""In the order in which they are measured."""


def name_of(lever: Lever, arm: Arm) -> str:
    """Return the name of an arm's records: the defaults are measured once for all levers."""
    return DEFAULTS if arm is lever.arms[0] else f"{lever.name} {arm.name}"
