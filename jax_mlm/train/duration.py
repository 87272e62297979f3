"""A length of time as an option gives it."""

from __future__ import annotations

import re

from jax_mlm.errors import UserError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST = 1e9
"""Seconds of the longest budget, thirty years."""


def parse_budget(text: str) -> float:
    """Return the seconds of '90s', '30m', '1.5h' or '2d'."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip().lower())
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= LONGEST:
        raise UserError(f"--budget {text!r} is not a time: write 90s, 30m, 2h or 1d")
    return seconds
