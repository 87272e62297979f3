"""The kinds of bad input, each for one reader or command line: what is drawn, and what has to come of it."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import lzma
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import mlm_onnx.__main__ as onnx_cli
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict
from hypothesis import strategies as st
from safetensors.numpy import load_file, save
from support.garbage import RAW, Enough, Outcome, attempt, byte_damage, damaged, strange
from support.models import HF_BERT, randomised
from support.paths import ROOT

from jax_mlm import compare, evaluate
from jax_mlm.cli.options import options_of
from jax_mlm.config import TrainConfig
from jax_mlm.data.sources import documents, find_sources
from jax_mlm.data.tokenizer import VocabularyTooLarge, load_tokenizer, train_tokenizer, vocabulary_of
from jax_mlm.errors import exit_status
from jax_mlm.hf import __main__ as hf
from jax_mlm.hf.config import hf_config
from jax_mlm.hf.weights import write_params
from jax_mlm.presets import SENTENCE
from jax_mlm.train import __main__ as train
from jax_mlm.train import loop
from jax_mlm.train.setup import set_up
from jax_mlm.train.start import words_of

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
    """Tries one case in an empty folder."""
    share: int
    """Of the campaign."""


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


# ---- text ----------------------------------------------------------------------------------------

LINE = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0\ufeff"), max_size=24)
PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
}  # fmt: skip
MARKS = {"utf-8": b"", "utf-8-sig": b"", "utf-16-le": codecs.BOM_UTF16_LE, "utf-32-be": codecs.BOM_UTF32_BE}


class Written(NamedTuple):
    """A file, and the documents in it; None if it need not be readable."""

    name: str
    content: bytes
    holds: list[str] | None


def kept(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()]


@st.composite
def packed(draw: st.DrawFn, suffix: str, content: bytes, holds: list[str]) -> Written:
    """Return the content, compressed or not, and whole or damaged."""
    packing = draw(st.sampled_from(list(PACKERS)))
    content = PACKERS[packing](content)
    if draw(st.booleans()):
        return Written(f"a{suffix}{packing}", content, holds if content else None)
    return Written(f"a{suffix}{packing}", draw(byte_damage(content)), None)


@st.composite
def texts(draw: st.DrawFn) -> Written:
    lines = draw(st.lists(LINE, max_size=8))
    how = draw(st.sampled_from(("whole", "whole", "whole", "bytes", "long", "surrogates", "nul")))
    if how == "bytes":
        return Written("a.txt", draw(st.binary(max_size=400)), None)
    if how == "long":
        piece = draw(st.sampled_from(("a", "a b ", "é", "字")))
        return Written("a.txt", (piece * (10_000_000 // len(piece.encode()))).encode(), None)
    if how in ("surrogates", "nul"):
        lines = [*lines, "\ud83d" if how == "surrogates" else "a\0b", *lines]
        return Written("a.txt", "\n".join(lines).encode("utf-8", "surrogatepass"), None)
    encoding, end = draw(st.sampled_from(list(MARKS))), draw(st.sampled_from(("\n", "\r\n", "\r")))
    text = end.join(lines) + draw(st.sampled_from(("", end)))
    content = MARKS[encoding] + text.encode(encoding)
    if not text.strip():
        return Written("a.txt", content, None)
    return draw(packed(draw(st.sampled_from((".txt", ".md", ".raw"))), content, kept(lines)))


@st.composite
def jsons(draw: st.DrawFn) -> Written:
    lines = draw(st.lists(LINE, min_size=1, max_size=5))
    records = [{"id": number, "text": line} for number, line in enumerate(lines)]
    ascii_only, array = draw(st.booleans()), draw(st.booleans())
    if draw(st.booleans()):
        records[-1] = draw(st.sampled_from(({}, {"text": 3}, {"text": ["a"]}, {"Text": "a"}, [], "a", 3, None)))
        content = "\n".join(map(json.dumps, records)).encode()
        raw = draw(st.sampled_from(RAW)).encode()
        field = b'{"text": ' + raw + b"}"
        return Written("a.jsonl", draw(st.sampled_from((content, raw, field, b"[" + field + b"]"))), None)
    if array:
        text = json.dumps(records, ensure_ascii=ascii_only)
    else:
        text = draw(st.sampled_from(("\n", "\r\n"))).join(json.dumps(r, ensure_ascii=ascii_only) for r in records)
    return draw(packed(".json" if array else ".jsonl", text.encode(), [line for line in lines if line.strip()]))


@st.composite
def tables(draw: st.DrawFn) -> Written:
    lines = [line for line in draw(st.lists(LINE, min_size=1, max_size=5)) if line.strip()]
    suffix, mark = draw(st.sampled_from(((".csv", ","), (".csv", ";"), (".tsv", "\t"))))
    written = io.StringIO()
    writer = csv.writer(written, delimiter=mark, lineterminator=draw(st.sampled_from(("\n", "\r\n"))))
    writer.writerows([["id", "text"], *([number, line] for number, line in enumerate(lines))])
    content = written.getvalue().encode()
    if draw(st.booleans()):
        more = st.sampled_from((b'"', b'a"b\n', b"1,2,3,4\n", b"1\n", b"\r", b"text\n", b'"x', b"," * 5000 + b"\n"))
        at = draw(st.integers(0, len(content)))
        return Written(f"a{suffix}", content[:at] + draw(more) + content[at:], None)
    return draw(packed(suffix, content, lines))


COLUMNS = (
    pa.array(["a b", None, ""]), pa.array([1, 2, 3]), pa.array([1.0, None, float("nan")]), pa.array([b"a", b"\xff", b""]),
    pa.array([["a"], [], None]), pa.array([{"text": "a"}] * 3), pa.array([None] * 3), pa.array([True, False, None]),
    pa.array(["a b", "c", "a b"]).dictionary_encode(), pa.array(["a b", "c d", "e"], pa.large_string()),
    pa.array([0, 1, 2], pa.timestamp("s")), pa.array(["a\0b", "c", "d"]),
)  # fmt: skip


@st.composite
def parquets(draw: st.DrawFn) -> Written:
    name = draw(st.sampled_from(("text", "text", "Text", "")))
    written = io.BytesIO()
    if draw(st.booleans()):
        lines = draw(st.lists(LINE, min_size=1, max_size=5))
        pq.write_table(pa.table({"text": lines}), written)
        holds = [line for line in lines if line.strip()]
        if draw(st.booleans()):
            return Written("a.parquet", written.getvalue(), holds)
    else:
        pq.write_table(pa.table({name: draw(st.sampled_from(COLUMNS))}), written)
        if draw(st.booleans()):
            return Written("a.parquet", written.getvalue(), None)
    return Written("a.parquet", draw(byte_damage(written.getvalue())), None)


def read_texts(case: Written, folder: Path) -> Outcome:
    (folder / case.name).write_bytes(case.content)
    found: list[str] = []

    def read() -> None:
        found.extend(documents(find_sources([case.name]).files, "line", "text"))

    outcome = attempt(lambda: exit_status(read), folder)
    if case.holds is not None:
        assert outcome.status == 0, outcome.said
        assert found == case.holds
    return outcome


@st.composite
def word_files(draw: st.DrawFn) -> bytes:
    return draw(st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode), st.just(b"a\n" * 100_000)))


def read_words(content: bytes, folder: Path) -> Outcome:
    (folder / "w.txt").write_bytes(content)
    return attempt(lambda: exit_status(lambda: words_of(["w.txt"])), folder)


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
    set_up(config)
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


NUMBERS = ("0", "-1", "1", "2", "3", "7", "1000000000", "1000000000000", "9" * 30, "9" * 4400, "-9999999999", "2.5",
           "0.5", "nan", "inf", "-inf", "1e400", "1e-400", "", " ", "x", "٣", "0x10", "1_000", "1e3", "-0.0")  # fmt: skip


@st.composite
def options(draw: st.DrawFn) -> list[str]:
    """Return a command line of training with one to three values that few options take."""
    given = []
    for _ in range(draw(st.integers(1, 3))):
        name, _, flag, settings = draw(st.sampled_from(OPTIONS))
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


# ---- Hugging Face directories --------------------------------------------------------------------

TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32, "mask_token": "[MASK]",
    "pad_token": {"content": "[PAD]", "special": True, "lstrip": False},
    "added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}},
    "additional_special_tokens": [], "do_lower_case": False,
}  # fmt: skip


@st.composite
def models(draw: st.DrawFn, model: Path) -> dict[str, bytes]:
    """Return files to put into a model's directory in the place of its own; empty ones go."""
    tensors = load_file(model / "model.safetensors")
    match draw(st.sampled_from(("config", "config", "header", "header", "weights", "index", "msgpack", "tokenizer", "old"))):
        case "config":
            return {"config.json": draw(damaged((model / "config.json").read_bytes()))}
        case "header":
            return {"model.safetensors": draw(headers((model / "model.safetensors").read_bytes()))}
        case "weights":
            kind = draw(st.sampled_from((np.float16, np.float64, np.int8, np.int64, np.uint8, np.bool_)))
            name = draw(st.sampled_from(sorted(tensors)))
            turned = draw(st.sampled_from((lambda x: x.T, lambda x: x[:0], lambda x: x.astype(kind), lambda x: x * np.inf)))
            changed = np.ascontiguousarray(turned(tensors[name]))
            return {"model.safetensors": draw(st.one_of(st.just(save(tensors | {name: changed})), byte_damage(save(tensors))))}
        case "index":
            names = ["a.safetensors", "../a.safetensors", "/etc/passwd", "..", "", "config.json", "a\0b", 3, None, ["a"], {}]
            index = {"metadata": {}, "weight_map": {name: draw(st.sampled_from(names)) for name in list(tensors)[:4]}}
            content = draw(st.one_of(st.just(json.dumps(index).encode()), damaged(json.dumps(index).encode())))
            return {"model.safetensors": b"", "model.safetensors.index.json": content}
        case "msgpack":
            tree = unflatten_dict({tuple(name.split(".")): array for name, array in tensors.items()})
            content = draw(st.one_of(byte_damage(msgpack_serialize(tree)), st.sampled_from(MSGPACKS), st.just(nested(5000))))
            return {"model.safetensors": b"", "flax_model.msgpack": content}
        case "tokenizer":
            name = draw(st.sampled_from(("tokenizer_config.json", "tokenizer.json")))
            return {name: draw(damaged((model / name).read_bytes()))}
        case _:
            name, content = draw(st.sampled_from(OLD))
            return {"tokenizer.json": b"", **BESIDE.get(name, {}), name: draw(byte_damage(content))}


def nested(depth: int) -> bytes:
    """Return a msgpack of dicts in dicts."""
    return b"\x81\xa1a" * depth + b"\x01"


MSGPACKS = (
    b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc0",
    b"\x81\xa1a\xc7\x05\x01\x93\x91\x01\xa1O", b"\x81\xa1a\xc7\x09\x01\x93\x91\xce\xff\xff\xff\xff\xa2<f", b"\x81\x01\x02",
    b"\x81\xa1a\xd4\x05x", b"\x81\xa1a\xa6object", b"\x81\xb5__msgpack_chunked_array__\xc3",
)  # fmt: skip
OLD = (
    ("vocab.txt", "\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c", "the")).encode()),
    ("vocab.json", json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6, "ab": 7}).encode()),
    ("merges.txt", b"#version: 0.2\na b\n"),
    ("spiece.model", b"".join(
        b"\x0a" + bytes([len(piece) + 9]) + b"\x0a" + bytes([len(piece)]) + piece + b"\x15\0\0\x80\xbf" + b"\x18" + bytes([type])
        for piece, type in ((b"<unk>", 2), (b"[CLS]", 3), (b"[SEP]", 3), (b"<pad>", 3), (b"[MASK]", 3), (b"\xe2\x96\x81a", 1))
    )),
    ("spiece.model", b"\x0a\xff\xff\xff" * 3 + b"\xff" * 200_000),
    ("added_tokens.json", json.dumps({"x": 16, "y": 17}).encode()),
    ("special_tokens_map.json", json.dumps({"mask_token": "[MASK]", "cls_token": {"content": "[CLS]"}}).encode()),
)  # fmt: skip
BESIDE = {
    "merges.txt": {"vocab.json": OLD[1][1]}, "vocab.json": {"merges.txt": OLD[2][1]},
    "added_tokens.json": {"vocab.txt": OLD[0][1]}, "special_tokens_map.json": {"vocab.txt": OLD[0][1]},
}  # fmt: skip


@st.composite
def headers(draw: st.DrawFn, content: bytes) -> bytes:
    """Return a safetensors file whose header lies."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    how = draw(st.sampled_from(("damage", "damage", "size", "offsets", "double")))
    if how == "size":
        number = draw(st.sampled_from((0, 1, size - 1, size + 1, len(content), 1 << 31, 1 << 40, (1 << 64) - 1)))
        return number.to_bytes(8, "little") + header + data
    if how == "damage":
        header = draw(damaged(header))
    elif how == "double":
        header = header.replace(b"{", b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},', 1)
    else:
        facts = json.loads(header)
        name = draw(st.sampled_from([name for name in facts if name != "__metadata__"]))
        facts[name]["data_offsets"] = draw(
            st.sampled_from(([0, 4], [4, 0], [0, len(data) * 2], [-4, 0], [0, 1 << 63], [1 << 40, 1 << 41], [0], [0.5, 4]))
        )
        facts[name]["dtype"] = draw(st.sampled_from(("F32", "F64", "BF16", "F16", "I8", "BOOL", "F8_E4M3", "X", "")))
        facts[name]["shape"] = draw(st.sampled_from((facts[name]["shape"], [], [1 << 32, 1 << 32], [1 << 62], [-1], [0])))
        header = json.dumps(facts).encode()
    return len(header).to_bytes(8, "little") + header + data


def try_model(case: tuple[Path, dict[str, bytes]], folder: Path) -> Outcome:
    model, files = case
    shutil.copytree(model, folder / "model")
    for name, content in files.items():
        (folder / "model" / name).write_bytes(content) if content else (folder / "model" / name).unlink(missing_ok=True)
    outcome = attempt(lambda: hf.main(["import", "model", "run"]), folder)
    if outcome.status == 0:  # what was taken for a model can be used
        vocabulary_of(load_tokenizer(folder / "run" / "tokenizer.json"))
    return outcome


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
            draw(around) + "[MASK]" + draw(around), draw(around), "[MASK]" * 40, "[MASK] " * 1100, "a " * 30_000 + "[MASK]",
            "", " ", "\0", "\udcff [MASK]", "a\r\n[MASK]", "<mask>", "[MASK", "[UNK] [MASK] [SEP] [PAD]", "x" * 1_000_001,
        ))
    )  # fmt: skip
    given = [f"--threads={draw(st.sampled_from(NUMBERS))}"] if draw(st.integers(0, 3)) == 0 else ["--threads=1"]
    if command == "fill":
        more = ("--top-k=", "--targets=", "--joint", "--first-piece", "--json")
        for option in draw(st.lists(st.sampled_from(more), max_size=2, unique=True)):
            given.append(option + (draw(st.sampled_from((*NUMBERS, "a,b", '"', "the", ",,"))) if option[-1] == "=" else ""))
    return [command, str(BUNDLE), *given, "--", text]


def try_question(argv: list[str], folder: Path) -> Outcome:
    return attempt(lambda: onnx_cli.main(argv), folder)


