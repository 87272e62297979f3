"""Makes the golden files anew: `python tests/golden/make.py`, which is not how a failing test is mended.

They are a text, two runs, two bundles, and what the code that made them answered. They stay as they are while the code
changes, so that what people have trained and converted goes on being read, and answers as it did.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from mlm_onnx import FillMask
from mlm_onnx.convert import Request, convert

from jax_mlm.data.batches import batch_at
from jax_mlm.data.dataset import open_dataset
from jax_mlm.data.tokenizer import load_tokenizer, vocabulary_of
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import make_forward
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run
from jax_mlm.run.log import read_metrics
from jax_mlm.version import package_version

GOLDEN = Path(__file__).resolve().parent
TEXT, EXPECTED, LOGITS = GOLDEN / "text.txt", GOLDEN / "expected.json", GOLDEN / "logits.npz"
RUNS, DTYPES = ("run", "run-bert"), ("fp32", "int8")
STEPS, MORE = 120, 4
TRAIN = [
    *("--preset", "tiny", "--data", "text.txt", "--valid-fraction", "0.1", "--tokenizer-limit", "256"),
    *("--layers", "2", "--width", "32", "--heads", "2", "--ff-width", "48", "--length", "32", "--max-length", "64"),
    *("--batch", "8", "--lr", "0.01", "--muon-lr", "0.03", "--weight-decay", "0.01", "--seed", "7"),
    *("--mask-rate", "0.15", "--global-every", "1", "--local-window", "128", "--embeddings", "random"),
    *("--decay", "0.3"),
    *("--steps", str(STEPS), "--eval-every", "20", "--log-every", "1"),
]
TRAIN_BERT = [
    *("--preset", "bert-base", "--data", "text.txt", "--valid-fraction", "0.1", "--tokenizer-limit", "256"),
    *("--layers", "2", "--width", "16", "--heads", "2", "--ff-width", "32", "--length", "24", "--max-length", "32"),
    *("--batch", "8", "--lr", "0.01", "--warmup", "0.1", "--mask-rule", "whole-word", "--seed", "3"),
    *("--steps", "60", "--eval-every", "30", "--log-every", "10"),
]
QUERIES = (
    "the old miller mends [MASK] green door near the river.",
    "a young sailor [MASK] a clay jar under the bridge.",
    "the baker finds some warm bread in [MASK] market.",
    "my sister paints a wooden basket [MASK] the barn.",
)
SENTENCES = ("the baker sells some warm bread in the market.", "my sister mends a clay jar near the river.")
PLACES = 4
"""Positions of each query at which logits are kept."""


def lines() -> Iterator[str]:
    """Made sentences in which who it is decides, most times, what is done, with what and where."""
    who = ("the old miller", "a young sailor", "the baker", "my sister")
    does = ("mends", "finds", "sells", "paints")
    what = ("the green door", "a clay jar", "some warm bread", "a wooden basket")
    where = ("near the river", "under the bridge", "in the market", "behind the barn")
    x = 1
    for _ in range(320):
        numbers = []
        for _ in range(5):
            x = (x * 1103515245 + 12345) % 2**31
            numbers.append((x >> 16) % 4)
        first, *others, usual = numbers
        if usual:
            others = [first] * 3
        yield " ".join(words[number] for words, number in zip((who, does, what, where), (first, *others), strict=True))


# ---- what the code answers -----------------------------------------------------------------------


def losses(run: Path, kind: str) -> dict[str, float]:
    """The losses of metrics.jsonl by step."""
    return {str(line["step"]): line["loss"] for line in read_metrics(run) if line["kind"] == kind}


def logits(run: Path) -> np.ndarray:
    """[queries, places, vocabulary] in float32, of the queries padded to one length."""
    config, (_, params) = read_run(run), load_params(run, "best")
    tokenizer = load_tokenizer(run / "tokenizer.json")
    encoded = [np.array(tokenizer.encode(text).ids, np.int32) for text in QUERIES]
    shape = (len(encoded), max(map(len, encoded)))
    tokens = np.full(shape, vocabulary_of(tokenizer).pad, np.int32)
    for row, ids in zip(tokens, encoded, strict=True):
        row[: len(ids)] = ids
    segments = np.arange(shape[1])[None] < np.array([len(ids) for ids in encoded])[:, None]
    positions = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1))
    at = np.array([np.arange(PLACES) * (len(ids) - 1) // (PLACES - 1) for ids in encoded], np.int32)
    return np.asarray(
        jax.jit(make_forward(config.model))(params, Inputs(tokens, segments.astype(np.int32), positions), at)
    )


def answers(bundle: Path) -> dict[str, Any]:
    """What a bundle says to the queries and sentences."""
    fill = FillMask(bundle, threads=1)
    found = [fill(text, top_k=5)["masks"][0]["candidates"] for text in QUERIES]
    return {
        "fill": [[[each["token"], each["probability"]] for each in candidates] for candidates in found],
        "score": [fill.score(text)["score"] for text in SENTENCES],
        "embed": [fill.embed(text).tolist() for text in SENTENCES],
    }


def processor() -> str:
    """The name of the processor and the number of cores at hand: what the last bits of a sum depend on."""
    facts = Path("/proc/cpuinfo")
    names = [line for line in facts.read_text().splitlines() if "model name" in line] if facts.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0].partition(':')[2].strip() if names else platform.processor()}, {cores} cores"


def maker() -> dict[str, str]:
    """What bits depend on."""
    packages = ("jax", "jaxlib", "flax", "optax", "onnx", "onnxruntime", "tokenizers", "numpy")
    return {"processor": processor(), **{name: package_version(name) for name in packages}}


def trained_bits(run: Path, cache: Path) -> dict[str, str]:
    """Hashes of a run's newest parameters and of its first batch."""
    params, config = hashlib.sha256(), read_run(run)
    for path, leaf in sorted(leaves(load_params(run)[1])):
        params.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode() + leaf.tobytes())
    config = replace(config, data=(str(TEXT),), resume=True, corpus=replace(config.corpus, cache=str(cache)))
    batch = hashlib.sha256()
    for array in batch_at(open_dataset(config, run).train, 0, config.seed, config.batch):
        batch.update(f"{array.dtype} {array.shape}\n".encode() + array.tobytes())
    return {"params": params.hexdigest(), "batch": batch.hexdigest()}


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from leaves(node, f"{path}{name}/")
        else:
            yield path + name, np.asarray(node)


def graph_bits(bundle: Path) -> dict[str, str]:
    """Hashes of the files of the predictor's graphs."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((bundle / "fast").iterdir())}


# ---- the files themselves ------------------------------------------------------------------------


def command(module: str, *arguments: str, cwd: Path, environment: Mapping[str, str]) -> str:
    line = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def slim(run: Path) -> None:
    """Takes away what no code reads again, and the absolute paths that Orbax leaves in its marks."""
    shutil.rmtree(run / "plots")
    (run / "report.html").unlink()
    for mark in run.rglob("commit_success.txt"):
        mark.write_text(mark.read_text().replace(f"{GOLDEN}/", ""))


def main() -> None:
    for old in (*RUNS, *(f"bundle-{dtype}" for dtype in DTYPES)):
        shutil.rmtree(GOLDEN / old, ignore_errors=True)
    TEXT.write_text("".join(f"{line}.\n" for line in lines()))
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = Path(folder)
        environment = {**os.environ, "JAX_MLM_CACHE": str(elsewhere / "cache"), "JAX_PLATFORMS": "cpu"}
        shutil.copy(TEXT, elsewhere)
        expected: dict[str, Any] = {"made": maker(), "runs": {}}
        for name, options in zip(RUNS, (TRAIN, TRAIN_BERT), strict=True):
            command("jax_mlm.train", *options, "--out", name, cwd=GOLDEN, environment=environment)
            slim(GOLDEN / name)
            said = command(
                "jax_mlm.evaluate", name, "--data", "text.txt", "--json", cwd=GOLDEN, environment=environment
            )
            expected["runs"][name] = {"evaluate": json.loads(said)}
        np.savez_compressed(LOGITS, **{name: logits(GOLDEN / name) for name in RUNS})

        again = elsewhere / "run"
        command("jax_mlm.train", *TRAIN, "--out", "run", cwd=elsewhere, environment=environment)
        expected["trained"] = {kind: losses(again, kind) for kind in ("train", "valid", "final")}
        assert expected["trained"]["train"] == losses(GOLDEN / "run", "train")
        expected["bits"] = trained_bits(again, elsewhere / "cache")
        assert expected["bits"] == trained_bits(GOLDEN / "run", elsewhere / "cache")
        resume = ("--resume", "--out", "run", "--steps", str(STEPS + MORE))
        command("jax_mlm.train", *resume, cwd=elsewhere, environment=environment)
        expected["resumed"] = {step: loss for step, loss in losses(again, "train").items() if int(step) > STEPS}

        expected["bundles"] = {}
        for dtype in DTYPES:
            bundle = GOLDEN / f"bundle-{dtype}"
            convert(GOLDEN / "run", bundle, Request(dtype, with_attention=True))
            expected["bundles"][dtype] = answers(bundle)
            expected["bits"][dtype] = graph_bits(bundle)
        EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
