"""How answers are printed."""

from __future__ import annotations

import json
import unicodedata


def one_line(token: str) -> str:
    r"""Return a token as it is printed in a table: line ends and the like as \n."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) == "Cc" else c for c in token)


def print_json(value: object) -> None:
    """Print one JSON object."""
    print(json.dumps(value, ensure_ascii=False))
