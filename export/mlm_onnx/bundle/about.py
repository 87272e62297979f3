"""Describe a bundle in sentences, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping

from mlm_onnx.bundle.layout import Json

MEMORISED = (
    "This model was trained on one sentence and has learned it by heart: “{sentence}”. Getting each of its {count} "
    "words right shows only that. There is no held-out text, so it measures nothing beyond this sentence, and about "
    "other sentences the model knows nothing."
)
WEIGHTS = {"int8": "8-bit weights", "fp32": "32-bit weights"}


def memorised(manifest: Json) -> str:
    """Return a warning if the model knows only one sentence, else an empty string."""
    sentence = _origin(manifest).get("memorised")
    return MEMORISED.format(sentence=sentence, count=len(sentence.split())) if isinstance(sentence, str) else ""


def about(manifest: Json) -> str:
    """Return one line about where a bundle came from."""
    origin = _origin(manifest)
    parts = [f"{key} {origin[key]}" for key in ("run", "preset", "step") if key in origin]
    parts += [WEIGHTS[dtype] for dtype in [str(manifest.get("dtype"))] if dtype in WEIGHTS]
    return f"This bundle: {', '.join(parts)}."


def _origin(manifest: Json) -> Json:
    origin = manifest.get("origin")
    return origin if isinstance(origin, Mapping) else {}
