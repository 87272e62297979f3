"""Describe a bundle in sentences, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEMORISED = (
    "This model was trained on one sentence and has learned it by heart: “{sentence}”. Getting each of its {count} "
    "words right means just that. There is no held-out text, so it measures nothing beyond this sentence, and about "
    "other sentences the model knows nothing."
)
WEIGHTS = {"int8": "8-bit weights", "fp32": "32-bit weights"}


def memorised(manifest: Mapping[str, Any]) -> str:
    """Return what the answers of a model that knows one sentence are worth; empty for any other model."""
    sentence = _origin(manifest).get("memorised")
    return MEMORISED.format(sentence=sentence, count=len(sentence.split())) if isinstance(sentence, str) else ""


def about(manifest: Mapping[str, Any]) -> str:
    """Return where a bundle came from, in a line."""
    origin = _origin(manifest)
    facts = [f"{key} {origin[key]}" for key in ("run", "preset", "step") if key in origin]
    facts += [WEIGHTS[dtype] for dtype in [str(manifest.get("dtype"))] if dtype in WEIGHTS]
    return f"This bundle: {', '.join(facts)}."


def _origin(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    origin = manifest.get("origin")
    return origin if isinstance(origin, Mapping) else {}
