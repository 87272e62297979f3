"""Words and texts."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from jax_mlm.presets import SENTENCE

WORDS = SENTENCE.split()
ROOM = 64


def long_text(length: int, *masks: int) -> list[str]:
    rng = random.Random(length)
    return ["[MASK]" if i in masks else rng.choice(WORDS) for i in range(length)]


def write_sentences(path: Path) -> Path:
    draw = random.Random(0)
    words = [a + b for a in ("ba", "de", "fi", "go", "lu", "mer") for b in ("no", "ti", "sa", "pel", "rund")]
    path.write_text("".join(" ".join(draw.choices(words, k=9)).capitalize() + ".\n" for _ in range(300)))
    return path


def slips(word: str) -> list[str]:
    """Return the word with two letters exchanged, with one left out, and with one written twice."""
    middle = len(word) // 2 + 1
    return [
        word[:middle] + word[middle + 1 : middle + 2] + word[middle : middle + 1] + word[middle + 2 :],
        word[:-2] + word[-1:],
        word[:middle] + word[middle : middle + 1] + word[middle:],
    ]


def sentences(lines: int, seed: int = 0) -> str:
    """Made-up sentences with some structure."""
    rng = np.random.default_rng(seed)
    subjects, verbs = ["the red fox", "a tall man", "my old dog", "this bird"], ["sees", "hears", "follows", "likes"]
    things = ["apples", "rivers", "stones", "the moon", "green hills"]
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    return "".join(f"{pick(subjects)} {pick(verbs)} {pick(things)} and {pick(things)}.\n" for _ in range(lines))
