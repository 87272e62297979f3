"""The text that runs are killed and stopped on."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.texts import sentences


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 made-up sentences in a file."""
    path = tmp_path_factory.mktemp("text") / "made.txt"
    path.write_text(sentences(400))
    return path
