"""A real model on real text: a thousand answers from its bundle are those of the JAX model, and int8 is measured."""

from __future__ import annotations

import random
from pathlib import Path

import jax
import numpy as np
import pytest
from mlm_onnx import FillMask
from mlm_onnx.convert import Request, write_bundle
from support.bundles import ONE_SHAPE

from jax_mlm.hf.directory import Imported, read_hf
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import make_forward

QUERIES = 1000
TOKENS = 64
ORIGIN = {"run": "bert-tiny-english", "preset": "none", "step": 0, "versions": {}}


@pytest.fixture(scope="module")
def imported(shared_data: Path) -> Imported:
    return read_hf(shared_data / "weights" / "bert-tiny-english")


@pytest.fixture(scope="module")
def lines(shared_data: Path) -> list[str]:
    text = (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text(encoding="utf-8")
    return [line for line in map(str.strip, text.splitlines()) if len(line.split()) > 10]


@pytest.fixture(scope="module")
def queries(imported: Imported, lines: list[str]) -> list[str]:
    """Beginnings of real paragraphs, a word of each hidden."""
    rng, made = random.Random(0), []
    while len(made) < QUERIES:
        words = rng.choice(lines).split()
        words = words[: rng.randint(5, min(40, len(words)))]
        words[rng.randrange(len(words))] = "[MASK]"
        text = " ".join(words)
        if len(imported.tokenizer.encode(text).ids) <= TOKENS:
            made.append(text)
    return made


def convert(imported: Imported, folder: Path, request: Request) -> FillMask:
    write_bundle(folder, imported.model, imported.params, imported.tokenizer, request, ORIGIN, ONE_SHAPE)
    return FillMask(folder, threads=1)


@pytest.mark.slow
def test_a_thousand_first_answers_are_jaxs(imported: Imported, queries: list[str], tmp_path: Path) -> None:
    fill = convert(imported, tmp_path / "b", Request("fp32"))
    encoded = [imported.tokenizer.encode(text).ids for text in queries]
    tokens, segments = np.zeros((2, QUERIES, TOKENS), np.int32)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    positions = np.broadcast_to(np.arange(TOKENS, dtype=np.int32), tokens.shape)
    at = (tokens == fill.bundle.special.mask_id).argmax(1).astype(np.int32)[:, None]
    forward = jax.jit(make_forward(imported.model))
    logits = np.concatenate(
        [
            np.asarray(forward(imported.params, Inputs(tokens[part], segments[part], positions[part]), at[part]))[:, 0]
            for part in np.split(np.arange(QUERIES), 10)
        ]
    ).astype(np.float64)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    logits[:, list(fill.bundle.special.excluded)] = -np.inf
    found = [answer["masks"][0]["candidates"][0] for answer in fill(queries, top_k=1)]
    ids = np.array([each["id"] for each in found])
    assert (ids == logits.argmax(1)).all()
    expected = shares[np.arange(QUERIES), ids]
    np.testing.assert_allclose([each["probability"] for each in found], expected, atol=1e-4)


@pytest.mark.slow
def test_int8_is_measured_on_the_text(imported: Imported, lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "held-out.txt").write_text("\n".join(lines[:400]), encoding="utf-8")
    fill = convert(imported, tmp_path / "b", Request(calibration=tmp_path / "held-out.txt"))
    measured = fill.bundle.manifest["parity"]["calibration"]
    assert measured["tokens"] >= 1000
    assert measured["drop"] <= 0.01
    assert measured["top1_agreement"] > 0.9
