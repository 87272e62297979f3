"""The parts of the recipe, and what each could be: the arms that `ablations.py` compares with a preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jax_mlm.config import TrainConfig

Ramp = tuple[tuple[float, Mapping[str, int]], ...]
"""The fields of the configuration, `batch` or `length`, that hold from each share of the steps on."""


class Arm(NamedTuple):
    """The preset but for one lever."""

    name: str
    options: tuple[str, ...] = ()
    """Words of the command line of `python -m jax_mlm.train`."""
    how: str = ""
    """What no option gives: mean, the mean of the states of the last fifth; apart, Q, K and V orthogonalised apart;
    depth, what a layer adds made smaller by √(2 · layers) at first; random, attention and head that begin at random; or
    one of `texts.TEXTS`."""
    ramp: Ramp = ()

    def job(self) -> dict[str, Any]:
        """Return what a worker needs to know besides the command line."""
        return {"how": self.how, "ramp": self.ramp}


class Lever(NamedTuple):
    """A part of the recipe, and what it could be; the first arm is what the preset has."""

    name: str
    arms: tuple[Arm, ...]
    by: str = "loss"
    """The figure that arms are compared by, where the losses of two mean different things."""


BY_STEPS = ("size", "batch", "schedule")
"""Levers of which more than one cost is shown: a budget may decide them."""
DEFAULTS = "defaults"
"""The name of the record of a lever's first arm, which all levers share."""


def _lever(name: str, default: str, *others: Arm, by: str = "loss") -> Lever:
    return Lever(name, (Arm(default), *others), by)


def _shape(layers: int, width: int, ff_width: int) -> tuple[str, ...]:
    heads = width // 64
    return "--layers", f"{layers}", "--width", f"{width}", "--heads", f"{heads}", "--ff-width", f"{ff_width}"


def _levers(shape: str, *others: Arm) -> tuple[Lever, ...]:
    """Return those of a preset, given its shape and others that cost about as much."""
    return (
        _lever("optimizer", "Muon", Arm("AdamW", ("--optimizer", "adamw"))),
        _lever(
            "mask rate",
            "40 → 15 %",
            Arm("15 %", ("--mask-rate", "0.15")),
            Arm("30 %", ("--mask-rate", "0.3")),
            Arm("40 %", ("--mask-rate", "0.4")),
            Arm("30 → 15 %", ("--mask-rate", "0.3", "--mask-rate-end", "0.15")),
            Arm("60 → 15 %", ("--mask-rate", "0.6", "--mask-rate-end", "0.15")),
        ),
        _lever("replacement", "80/10/10", Arm("all [MASK]", ("--mask-token", "1", "--mask-random", "0"))),
        _lever(
            "batch",
            "32",
            Arm("64", ("--batch", "64")),
            Arm("16", ("--batch", "16")),
            Arm("8 → 16 → 32", ramp=((0, {"batch": 8}), (0.2, {"batch": 16}), (0.4, {"batch": 32}))),
        ),
        _lever(
            "length",
            "128",
            Arm("64", ("--length", "64", "--batch", "64")),
            Arm("64 → 128", ramp=((0, {"length": 64, "batch": 64}), (0.5, {"length": 128, "batch": 32}))),
        ),
        _lever(
            "schedule",
            "stable, then 55 % decay",
            Arm("stable, then 30 % decay", ("--decay", "0.3")),
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
        _lever("depth × width", shape, *others),
        _lever("documents", "isolated", Arm("crossing", ("--pack", "plain"))),
        _lever("averaging", "none", Arm("mean of the last fifth", how="mean")),
        _lever("Muon's Q, K and V", "together", Arm("apart", how="apart")),
        _lever(
            "weight decay",
            "0.1",
            Arm("0", ("--weight-decay", "0")),
            Arm("0.01", ("--weight-decay", "0.01")),
            Arm("0.3", ("--weight-decay", "0.3")),
        ),
        _lever(
            "initialisation",
            "0.02",
            Arm("0.01", ("--init-std", "0.01")),
            Arm("0.04", ("--init-std", "0.04")),
            Arm("smaller with depth", how="depth"),
        ),
        _lever(
            "learning rates",
            "×1",
            Arm("×0.5", ("--lr", "1e-3", "--muon-lr", "0.006")),
            Arm("×2", ("--lr", "4e-3", "--muon-lr", "0.024")),
            Arm("Muon's ×1.5", ("--muon-lr", "0.018")),
            Arm("the others' ×2", ("--lr", "4e-3")),
        ),
        _lever(
            "attention",
            "every 2nd layer ±8",
            Arm("global", ("--global-every", "1")),
            Arm("every 2nd layer ±16", ("--local-window", "32")),
            Arm("3 layers of 4 ±8", ("--global-every", "4")),
        ),
        _lever("embeddings", "counted", Arm("random", ("--embeddings", "random"))),
        _lever("attention and head at first", "hand on", Arm("random", how="random")),
        _lever(
            "text",
            "as it is",
            Arm("copies dropped", ("--dedup",)),
            Arm("a document a sentence", how="sentences"),
            Arm("documents shuffled", how="shuffled"),
            Arm("headings left out", how="prose"),
            by="bits_per_byte",
        ),
    )


LEVERS: Mapping[str, tuple[Lever, ...]] = {
    "micro": _levers("3×192", Arm("2×256", _shape(2, 256, 256)), Arm("7×128", _shape(7, 128, 192))),
    "tiny": (
        *_levers("4×256", Arm("2×384", _shape(2, 384, 448)), Arm("7×192", _shape(7, 192, 288))),
        _lever(
            "size",
            "4×256",
            Arm("2×128", _shape(2, 128, 192)),
            Arm("4×128", _shape(4, 128, 192)),
            Arm("2×192", _shape(2, 192, 288)),
            Arm("3×192", _shape(3, 192, 288)),
            Arm("2×256", ("--layers", "2")),
            Arm("6×384", _shape(6, 384, 576)),
        ),
    ),
}
"""Of each preset that is measured, in the order in which they are."""


def name_of(lever: Lever, arm: Arm) -> str:
    """Return the name of an arm's records: the defaults are measured once for all levers."""
    return DEFAULTS if arm is lever.arms[0] else f"{lever.name} {arm.name}"


def arms_by_name(preset: str) -> dict[str, Arm]:
    """Return every arm of a preset that can be measured, by the name of its records."""
    return {name_of(lever, arm): arm for lever in LEVERS[preset] for arm in lever.arms}


def changed(config: TrainConfig, fields: Mapping[str, int]) -> TrainConfig:
    """Return a configuration with what a part of a ramp changes."""
    assert set(fields) <= {"batch", "length"}, fields
    corpus = replace(config.corpus, length=fields.get("length", config.corpus.length))
    return replace(config, corpus=corpus, batch=fields.get("batch", config.batch))
