"""Bad input, systematically: a right result, or exit 2 with one line, and nothing left behind."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.garbage import scratch
from support.kinds import Kind, kinds  # noqa: F401  a fixture


def tried(kind: Kind, count: int, root) -> dict[str, int]:
    """Try so many cases of a kind, always the same ones; return how they ended."""
    ended = {"accepted": 0, "refused": 0}

    @settings(derandomize=True, database=None, deadline=None, max_examples=count, suppress_health_check=list(HealthCheck))
    @given(kind.cases)
    def every(case) -> None:
        with scratch(root) as folder:
            outcome = kind.perform(case, folder)
        ended["refused" if outcome.status else "accepted"] += 1

    every()
    return ended


NAMES = ("text", "JSON", "tables", "Parquet", "words", "names", "options", "tokenizers", "models", "runs", "questions")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_some(name, kinds, tmp_path):
    print(name, tried(kinds[name], int(__import__("os").environ.get("N", max(5, kinds[name].share // 12))), tmp_path))
