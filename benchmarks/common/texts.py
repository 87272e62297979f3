"""What a text to train on is made into, to measure what that is worth."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path


def sentences(documents: Iterable[str]) -> Iterator[str]:
    """Yield the sentences of documents, cut where a full stop and a space are followed by a capital letter."""
    for document in documents:
        yield from re.split(r"(?<=[.!?]) +(?=[\"'“‘]?[A-Z])", document)


def shuffled(documents: Iterable[str]) -> list[str]:
    """Return the documents in another order, always the same."""
    return random.Random(0).sample(every := list(documents), len(every))


def prose(documents: Iterable[str]) -> Iterator[str]:
    """Yield the documents with a sentence that ends: no headings, page numbers or tables of contents."""
    return (document for document in documents if re.search(r"\w{2}[ )\"'”’]*[.!?][\"'”’)]?( |$)", document))


TEXTS: Mapping[str, Callable[[Iterable[str]], Iterable[str]]] = {
    "sentences": sentences,
    "shuffled": shuffled,
    "prose": prose,
}
"""What the text to train on is made into before a run; its documents are lines."""


def text_for(how: str, files: Sequence[str], folder: Path) -> list[str]:
    """Return the files to train on: those given, or one that is made of them."""
    if how not in TEXTS:
        return list(files)
    from jax_mlm.config import DataConfig
    from jax_mlm.data.sources import documents, expand

    path = folder / "text.txt"
    with path.open("w", encoding="utf-8") as file:
        for document in TEXTS[how](documents(expand(files), "line", DataConfig.text_field)):
            file.write(f"{document}\n")
    return [str(path)]
