"""The kinds of bad input, each for one reader or command line: what is drawn, and what has to come of it."""

from __future__ import annotations

import contextlib
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import mlm_onnx.__main__ as onnx_cli
import pytest
from hypothesis import strategies as st

from jax_mlm import compare, evaluate
from jax_mlm.cli.options import options_of
from jax_mlm.config import TrainConfig
from jax_mlm.data.tokenizer import VocabularyTooLarge, train_tokenizer
from jax_mlm.hf import __main__ as hf
from jax_mlm.hf.config import hf_config
from jax_mlm.hf.weights import write_params
from jax_mlm.presets import SENTENCE
from jax_mlm.train import __main__ as train
from jax_mlm.train import loop
from jax_mlm.train.setup import claimed, set_up
from support.drawn_models import TOKENIZER_CONFIG, models, try_model
from support.drawn_texts import jsons, parquets, read_texts, read_words, tables, texts, word_files
from support.garbage import Enough, Outcome, attempt, damaged, strange
from support.models import HF_BERT, randomised
from support.paths import ROOT

RUN, BUNDLE = ROOT / "tests" / "golden" / "run", ROOT / "tests" / "golden" / "bundle-fp32"
TEXT = "\n".join(f"the {a} {b} finds a {c} near the {d}" for a in ("old", "new") for b in ("cat", "dog") for c in
                 ("jar", "door", "barn") for d in ("river", "bridge")) + "\n"  # fmt: skip
SMALL = ("--preset", "tiny", "--width", "16", "--layers", "1", "--heads", "2", "--ff-width", "16", "--length", "16",
         "--max-length", "32", "--batch", "2", "--steps", "1", "--tokenizer-kind", "word")  # fmt: skip
"""Words, since a text of anything supports a vocabulary of them."""


class Kind(NamedTuple):
    """A kind of bad input."""

    cases: st.SearchStrategy[Any]
    perform: Callable[[Any, Path], Outcome]
    """Try one case in an empty folder."""
    share: int
    """Cases of this kind in the campaign."""


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """All of them."""
    model = tmp_path_factory.mktemp("model")
    train_tokenizer([SENTENCE], "word", 16).save(str(model / "tokenizer.json"))
    write_params(model / "model.safetensors", randomised(HF_BERT), HF_BERT)
    (model / "config.json").write_text(json.dumps(hf_config(HF_BERT, 0, None, None)))
    (model / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return {
        "text": Kind(texts(), read_texts, 400),
        "JSON": Kind(jsons(), read_texts, 300),
        "tables": Kind(tables(), read_texts, 300),
        "Parquet": Kind(parquets(), read_texts, 200),
        "words": Kind(word_files(), read_words, 100),
        "names": Kind(st.tuples(st.sampled_from(list(SLOTS)), st.integers(0, 26)), try_name, 450),
        "options": Kind(options(), try_options, 350),
        "tokenizers": Kind(tokenizers(), try_tokenizer, 300),
        "models": Kind(st.tuples(st.just(model), models(model)), try_model, 500),
        "runs": Kind(runs(), try_run, 300),
        "questions": Kind(questions(), try_question, 300),
    }


# ---- command lines -------------------------------------------------------------------------------


@contextlib.contextmanager
def rehearsed() -> Iterator[pytest.MonkeyPatch]:
    """Let training end before it writes anything; keep the cache of compiled programs of this process."""
    compiled = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", rehearse)
        yield patch
    jax.config.update("jax_compilation_cache_dir", compiled)


def rehearse(config: TrainConfig, **_: object) -> typing.NoReturn:
    """Do what training does before it writes anything."""
    with claimed(config) as (config, run, _):
        set_up(config, run)
    raise Enough


def trained(argv: list[str], folder: Path, write: bool = True) -> Outcome:
    if write:
        (folder / "text.txt").write_text(TEXT)
    with rehearsed():
        return attempt(lambda: train.main(argv), folder)


SLOTS: Mapping[str, Callable[[str], tuple[Callable[[list[str]], int], list[str]]]] = {
    "train --data": lambda name: (train.main, [*SMALL, "--out", "run", "--data", name]),
    "train --valid": lambda name: (train.main, [*SMALL, "--out", "run", "--data", "text.txt", "--valid", name]),
    "train --tokenizer": lambda name: (train.main, [*SMALL, "--out", "run", "--data", "text.txt", "--tokenizer", name]),
    "train --init": lambda name: (train.main, ["--out", "run", "--data", "text.txt", "--steps", "1", "--init", name]),
    "train --distil": lambda name: (train.main, ["--out", "r", "--data", "text.txt", "--steps", "1", "--distil", name]),
    "train --resume": lambda name: (train.main, ["--resume", "--out", name]),
    "train --cache": lambda name: (train.main, [*SMALL, "--out", "run", "--data", "text.txt", "--cache", name]),
    "evaluate RUN": lambda name: (evaluate.main, [name, "--data", "text.txt"]),
    "evaluate --data": lambda name: (evaluate.main, [str(RUN), "--data", name]),
    "evaluate --pairs": lambda name: (evaluate.main, [str(RUN), "--pairs", name]),
    "compare RUN": lambda name: (compare.main, ["--", name, str(RUN)]),
    "compare --out": lambda name: (compare.main, [str(RUN), str(RUN), "--out", name]),
    "import HF_DIR": lambda name: (hf.main, ["import", "--", name, "run"]),
    "import RUN": lambda name: (hf.main, ["import", "--", "nowhere", name]),
    "export RUN": lambda name: (hf.main, ["export", "--", name, "model"]),
    "export HF_DIR": lambda name: (hf.main, ["export", "--", "nowhere", name]),
    "fill BUNDLE": lambda name: (onnx_cli.main, ["fill", "--", name, "a [MASK]"]),
    "info BUNDLE": lambda name: (onnx_cli.main, ["info", "--", name]),
    "convert RUN": lambda name: (onnx_cli.main, ["convert", "--", name, "bundle"]),
    "convert BUNDLE": lambda name: (onnx_cli.main, ["convert", "--", "nowhere", name]),
    "convert --calibrate": lambda name: (onnx_cli.main, ["convert", str(RUN), "bundle", "--calibrate", name]),
}
"""Where a command line names a file or a folder."""
HEAVY = {"evaluate --data", "export RUN", "convert --calibrate", "train --cache"}
"""Whose work is done only with names that are refused: it computes, or writes elsewhere."""


def try_name(case: tuple[str, int], folder: Path) -> Outcome:
    slot, number = case
    (folder / "text.txt").write_text(TEXT)
    names = list(strange(folder).values())
    main, argv = SLOTS[slot](names[number % len(names)])
    with rehearsed() as patch:
        if slot == "evaluate --data":
            patch.setattr("jax_mlm.evals.text.evaluate_rows", enough)
        if slot == "convert --calibrate":
            patch.setattr("mlm_onnx.convert.pipeline.calibrate", enough, raising=False)
        return attempt(lambda: main(argv), folder, slot == "train --cache")


def enough(*_: object, **__: object) -> typing.NoReturn:
    raise Enough


NUMBERS = (
    "0", "-1", "1", "2", "3", "7", "1000000000", "1000000000000", "9" * 30, "9" * 4400, "-9999999999", "2.5", "0.5",
    "nan", "inf", "-inf", "1e400", "1e-400", "", " ", "x", "٣", "0x10", "1_000", "1e3", "-0.0",
)  # fmt: skip


@st.composite
def options(draw: st.DrawFn) -> list[str]:
    """Return a command line of training with one to three values that few options take."""
    given = []
    for _ in range(draw(st.integers(1, 3))):
        _, _, flag, settings = draw(st.sampled_from(OPTIONS))
        if "choices" in settings:
            value = draw(st.sampled_from((*settings["choices"], "x", "")))
        elif settings.get("action") is not None:
            given.append(draw(st.sampled_from((flag, flag.replace("--", "--no-"), f"{flag}=1"))))
            continue
        else:
            value = draw(st.sampled_from(NUMBERS[:10] if settings["type"] is int else NUMBERS))
        given.append(f"{flag}={value}")
    return [*SMALL, "--out", "run", "--data", "text.txt", *given]


OPTIONS = [
    option for option in options_of(TrainConfig)
    if option[0] not in ("data", "out", "multi_host", "track", "init", "distil", "cache", "valid", "preset", "resume")
]  # fmt: skip


def try_options(argv: list[str], folder: Path) -> Outcome:
    return trained(argv, folder)


# ---- tokenizers ----------------------------------------------------------------------------------


@st.composite
def tokenizers(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(("word", "wordpiece", "bpe", "unigram")))
    return draw(damaged(TOKENIZERS[kind]))


def tokenizer_of(kind: typing.Literal["word", "wordpiece", "bpe", "unigram"], size: int = 300) -> bytes:
    try:
        return train_tokenizer([TEXT], kind, size).to_str().encode()
    except VocabularyTooLarge as error:
        return tokenizer_of(kind, error.reachable)


TOKENIZERS = {kind: tokenizer_of(kind) for kind in ("word", "wordpiece", "bpe", "unigram")}


def try_tokenizer(content: bytes, folder: Path) -> Outcome:
    """Load it, and train with it as far as that goes without compiling."""
    (folder / "tokenizer.json").write_bytes(content)
    small = [word for word in SMALL if word not in ("--tokenizer-kind", "word")]
    return trained([*small, "--out", "run", "--data", "text.txt", "--tokenizer", "tokenizer.json"], folder)


# ---- runs ----------------------------------------------------------------------------------------


@st.composite
def runs(draw: st.DrawFn) -> tuple[str, bytes, str]:
    name = draw(st.sampled_from(("run.json", "run.json", "metrics.jsonl", "metrics.jsonl", "samples.jsonl")))
    content = (RUN / name).read_bytes()
    command = draw(st.sampled_from(("compare", "compare --out", "resume", "evaluate")))
    if name == "run.json":
        return name, draw(damaged(content)), command
    lines = content.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = draw(damaged(lines[at].strip())).replace(b"\n", b" ") + b"\n"
    return name, b"".join(lines), "compare --out"


def try_run(case: tuple[str, bytes, str], folder: Path) -> Outcome:
    name, content, command = case
    (folder / "run").mkdir()
    for file in ("run.json", "metrics.jsonl", "samples.jsonl", "tokenizer.json"):
        (folder / "run" / file).write_bytes((RUN / file).read_bytes())
    (folder / "run" / name).write_bytes(content)
    (folder / "text.txt").write_text(TEXT)
    (folder / "run" / "checkpoints").symlink_to(RUN / "checkpoints")
    with rehearsed() as patch:
        patch.setattr("jax_mlm.evals.text.evaluate_text", enough)
        match command:
            case "compare":
                return attempt(lambda: compare.main(["run", str(RUN)]), folder)
            case "compare --out":
                return attempt(lambda: compare.main(["run", str(RUN), "--out", "c.html"]), folder)
            case "resume":
                return attempt(lambda: train.main(["--resume", "--out", "run"]), folder)
            case _:
                return attempt(lambda: evaluate.main(["run", "--data", "text.txt"]), folder)


# ---- questions -----------------------------------------------------------------------------------


@st.composite
def questions(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(("fill", "fill", "explain", "score", "embed")))
    around = st.text(max_size=20)
    text = draw(
        st.sampled_from((
            draw(around) + "[MASK]" + draw(around), draw(around), "[MASK]" * 40, "[MASK] " * 1100, "", " ", "\0",
            "a " * 30_000 + "[MASK]", "\udcff [MASK]", "a\r\n[MASK]", "<mask>", "[MASK", "[UNK] [MASK] [SEP] [PAD]",
            "x" * 1_000_001,
        ))
    )  # fmt: skip
    given = [f"--threads={draw(st.sampled_from(NUMBERS))}"] if draw(st.integers(0, 3)) == 0 else ["--threads=1"]
    if command == "fill":
        more = ("--top-k=", "--targets=", "--joint", "--first-piece", "--json")
        for option in draw(st.lists(st.sampled_from(more), max_size=2, unique=True)):
            given.append(
                option + (draw(st.sampled_from((*NUMBERS, "a,b", '"', "the", ",,"))) if option[-1] == "=" else "")
            )
    return [command, str(BUNDLE), *given, "--", text]


def try_question(argv: list[str], folder: Path) -> Outcome:
    return attempt(lambda: onnx_cli.main(argv), folder)
