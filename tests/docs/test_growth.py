"""The benchmark of growing costs takes the step of a point."""

from __future__ import annotations

import sys

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import growth


def test_a_point_is_timed_with_what_a_step_takes() -> None:
    found = growth.step_of({"length": 16, "batch": 2, "width": 64, "vocabulary": 64, "devices": 1})
    assert found["seconds"] > 0
    assert found["state_bytes"] > 4 * 64 * 64
