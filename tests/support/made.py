"""A made-up text that many runs are trained on, so that they share compiled programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def made_text(path: Path) -> Path:
    """Write 400 sentences with some structure."""
    rng = np.random.default_rng(0)
    subjects, verbs = ["the red fox", "a tall man", "my old dog", "this bird"], ["sees", "hears", "follows", "likes"]
    things = ["apples", "rivers", "stones", "the moon", "green hills"]

    def pick(words: list[str]) -> str:
        return words[rng.integers(len(words))]

    path.write_text("".join(f"{pick(subjects)} {pick(verbs)} {pick(things)} and {pick(things)}.\n" for _ in range(400)))
    return path
