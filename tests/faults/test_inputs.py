"""Bad input: a right result, or exit 2 with one line, and nothing left behind. The kinds are drawn in test_drawn.py."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlm_onnx.bundle import BundleError, open_bundle
from mlm_onnx.bundle.layout import FORMAT as BUNDLE_FORMAT
from mlm_onnx.convert.asked import queries
from safetensors.numpy import load_file, save_file
from support.garbage import strange, tree
from support.models import HF_BERT, randomised
from support.paths import ROOT
from tokenizers import Tokenizer, models

from jax_mlm import compare
from jax_mlm.config import ModelConfig, TrainConfig, from_json, to_json
from jax_mlm.cost.memory import check_memory
from jax_mlm.data import dataset, decoding, records
from jax_mlm.data.encoding import encode
from jax_mlm.data.sources import documents, find_sources
from jax_mlm.data.tokenizer import load_tokenizer, train_tokenizer, vocabulary_of
from jax_mlm.errors import UserError, exit_status
from jax_mlm.hf.__main__ import main as hf
from jax_mlm.hf.config import hf_config
from jax_mlm.hf.sentencepiece import read_unigram
from jax_mlm.hf.weights import write_params
from jax_mlm.presets import PRESETS, SENTENCE
from jax_mlm.run.directory import FORMAT, read_run
from jax_mlm.train.__main__ import main as train

GOLDEN = ROOT / "tests" / "golden"
REMOVALS = ROOT / "tests" / "faults" / "removals"


def refused(main, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command says."""
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") or "\nerror: " in said, said
    assert said.count("error: ") == 1
    assert "Traceback" not in said
    return said.splitlines()[-1]


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("heads", "0", "--heads must be at least 1, not 0"),
        ("layers", "0", "--layers must be at least 1, not 0"),
        ("width", "1000000000", "--width must be at most 1048576, not 1000000000"),
        ("batch", "1000000000000", "--batch must be at most 16777216, not 1000000000000"),
        ("length", "0", "--length must be at least 1, not 0"),
        ("lr", "nan", "--lr must be at most 1e+30, not nan"),
        ("lr", "1e400", "--lr must be at most 1e+30, not inf"),
        ("dropout", "1", "--dropout must be less than 1, not 1.0"),
        ("mask-rate-end", "nan", "--mask-rate and --mask-rate-end must lie between 0 and 1"),
        ("seed", "-1", "--seed must be at least 0, not -1"),
        ("steps", "99999999999", "--steps must be at most 2147483647, not 99999999999"),
        ("workers", "1000000", "--workers must be at most 1024, not 1000000"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_option(option, value, said, capsys) -> None:
    assert refused(train, [f"--{option}={value}"], capsys) == f"error: {said}"


def test_what_no_machine_holds_is_refused_before_it_is_made() -> None:
    config = TrainConfig(model=ModelConfig(width=1 << 20, heads=4, layers=1000, ff_width=1 << 20))
    with pytest.raises(
        UserError, match=r"--width 1048576, --layers 1000: .* need at least .* GB: choose a smaller model"
    ):
        check_memory(config, 1 << 40, 8)
    with pytest.raises(UserError, match=r"--batch 16777216 of --length 128: 2097152 rows at once .*raise --accumulate"):
        check_memory(replace(TrainConfig(), batch=1 << 24), 1 << 34, 8)
    check_memory(PRESETS["bert-large"], 16 << 30, 1)


@pytest.mark.parametrize("value", [None, "8", 8.5, True, [8], {}])
def test_a_run_file_with_a_value_of_another_type_is_refused(value) -> None:
    with pytest.raises(ValueError, match="width is"):
        from_json(TrainConfig, {"model": {"width": value}})
    for name in PRESETS:
        assert from_json(TrainConfig, to_json(PRESETS[name])) == PRESETS[name]


def test_messages_are_one_line_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> int:
        def act() -> None:
            raise error

        return exit_status(act)

    assert fail(UserError("a\nb\x1b[31m\udcff")) == 2
    assert capsys.readouterr().err == "error: a\\nb\\x1b[31m\\udcff\n"
    assert fail(UserError("x" * 1_000_000)) == 2
    assert len(capsys.readouterr().err) < 2100
    assert fail(PermissionError(13, "Permission denied", "runs/a")) == 2
    assert capsys.readouterr().err == "error: runs/a: Permission denied\n"
    with pytest.raises(OSError, match="a defect"):
        fail(OSError("a defect"))


# ---- text ----------------------------------------------------------------------------------------


def test_what_is_not_a_file_is_named_and_never_waited_for(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names = strange(tmp_path)
    before = tree(tmp_path)
    for kind, reason in {
        "a pipe": "is a pipe or a device: give a file, or pipe the text in with --data -",
        "a socket": "is a pipe or a device",
        "zeros without end": "is a pipe or a device",
        "a broken link": "broken is a link to nowhere, which is not there",
        "a link to itself": "loop is a link to loop, which is not there",
        "a folder with a broken link": "is a link to nowhere, which is not there: mend or remove it",
        "a glob with a broken link": "is a link to nowhere, which is not there: mend or remove it",
        "a glob in a circle": "is a link to a folder around it: remove it, or name files",
        "a name too long": "File name too long",
        "the name '~nobody-here/x'": "no such file or folder",
    }.items():
        assert reason in refused(train, ["--data", names[kind], "--out", "run", "--steps", "1"], capsys), kind
    assert tree(tmp_path) == before


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_ends_a_line(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.txt").write_bytes(f"one two{end}{end}three{end}".encode())
    (tmp_path / "b.csv").write_bytes(f"id,text{end}1,one two{end}2,three{end}".encode())
    for name in ("a.txt", "b.csv"):
        assert list(documents([tmp_path / name], "line", "text")) == ["one two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "' + b"x" * 9000 + b'"}', "a record of more than"),
        ("a.json", b'[{"text": "' + b"x\n" * 9000, "element 0 has more than"),
        ("a.csv", b'text\n"' + b"x" * 9000, "a record of more than"),
        ("a.jsonl", b'{"text": ' + b"[" * 60000 + b"]" * 60000 + b"}", "line 1: not JSON (it is nested too deep)"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1: not JSON (a number in it has too many digits)"),
        ("a.jsonl", json.dumps(dict.fromkeys(map(str, range(9000)))).encode(), "no field 'text' (it has: 0, 1, 2,"),
    ],
)
def test_a_record_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch, name, content, reason) -> None:
    if "more than" in reason:
        monkeypatch.setattr(decoding, "LONGEST_RECORD", 4096)
        monkeypatch.setattr(records, "LONGEST_RECORD", 4096)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        list(documents(find_sources([str(tmp_path / name)]).files, "line", "text"))
    assert reason in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_first_line_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"id,text\rmore\n1,a\n")
    with pytest.raises(UserError, match="line 1: not a table as CSV has it"):
        list(documents([tmp_path / "a.csv"], "line", "text"))


def test_one_document_is_refused_before_a_tokenizer_is_trained(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(dataset, "train_tokenizer", pytest.fail)
    (tmp_path / "a.txt").write_text("one two three " * 1000)
    said = refused(train, ["--data", str(tmp_path / "a.txt"), "--steps", "1", "--out", str(tmp_path / "run")], capsys)
    assert "the data are a single document, of which none can be held out" in said


def test_what_looks_like_a_mask_in_a_text_to_calibrate_on_is_text(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([f"{SENTENCE} [ ] MASK SEP"] * 3, "wordpiece", 64)
    (tmp_path / "a.txt").write_text(f"{SENTENCE} [MASK] [SEP]\n" * 40)
    vocabulary = vocabulary_of(tokenizer)
    for ids, at, _ in queries(tmp_path / "a.txt", tokenizer, vocabulary, 128):
        assert set(np.flatnonzero(ids[0] == vocabulary.mask)) == set(at[0])
        assert (ids[0] == vocabulary.sep).sum() == 1


# ---- tokenizers ----------------------------------------------------------------------------------


def test_ids_that_are_no_rows_of_a_table_are_refused(tmp_path: Path) -> None:
    content = json.loads(train_tokenizer([SENTENCE], "word", 16).to_str())
    vocab = content["model"]["vocab"]
    for changed, reason in (
        ({"creates": vocab["a"]}, "have one id"),
        ({"creates": 1 << 31}, "the id 2147483648 is too large for a vocabulary"),
        ({"creates": 1 << 40}, "is not a tokenizer.json"),
    ):
        (tmp_path / "t.json").write_text(
            json.dumps({**content, "model": content["model"] | {"vocab": vocab | changed}})
        )
        with pytest.raises(UserError, match=reason):
            load_tokenizer(tmp_path / "t.json")


def test_a_tokenizer_that_fails_on_a_text_is_named() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[MASK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[MASK]"])
    with pytest.raises(UserError, match=r"the tokenizer fails \(WordLevel error"):
        encode(tokenizer, ["b"])


# ---- Hugging Face directories --------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    train_tokenizer([SENTENCE], "word", 16).save(str(folder / "tokenizer.json"))
    write_params(folder / "model.safetensors", randomised(HF_BERT), HF_BERT)
    (folder / "config.json").write_text(json.dumps(hf_config(HF_BERT, 0, None, None)))
    return folder


def test_hostile_models_are_refused_and_leave_nothing(model: Path, tmp_path: Path, capsys) -> None:
    tensors = load_file(model / "model.safetensors")
    name = next(iter(tensors))
    weights, config = (model / "model.safetensors").read_bytes(), (model / "config.json").read_text()

    def said(**files: bytes | str) -> str:
        (model / "model.safetensors").write_bytes(weights)
        (model / "config.json").write_text(config)
        for file, content in files.items():
            (model / file.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
        line = refused(hf, ["import", str(model), str(tmp_path / "run")], capsys)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
        return line

    deep = config.replace('"hidden_size": 16', f'"hidden_size": {"[" * 900 + "]" * 900}')
    assert "hidden_size is [[[" in (line := said(config__json=deep))
    assert len(line) < 500
    assert "is not valid JSON" in said(config__json="[" * 100_000)
    assert "is truncated or no safetensors file" in said(model__safetensors=(1 << 62).to_bytes(8, "little") + weights)
    save_file(tensors | {name: np.full_like(tensors[name], np.inf)}, tmp_path / "model" / "inf")
    assert "holds numbers that are not finite" in said(model__safetensors=(model / "inf").read_bytes())
    ids = json.dumps({"added_tokens_decoder": {"9" * 5000: {"content": "x"}}})
    assert "added_tokens_decoder is" in said(tokenizer_config__json=ids)
    (model / "tokenizer_config.json").unlink()
    index = json.dumps({"weight_map": {name: "../model/whole.safetensors"}})
    (model / "model.safetensors.index.json").write_text(index)
    (model / "model.safetensors").write_bytes(weights)
    (model / "model.safetensors").rename(model / "whole.safetensors")
    (model / "config.json").write_text(config)
    assert "names '../model/whole.safetensors', which is not there" in refused(
        hf, ["import", str(model), str(tmp_path / "run")], capsys
    )
    (model / "model.safetensors.index.json").write_text("[" * 100_000)
    assert "is not an index of weights" in refused(hf, ["import", str(model), str(tmp_path / "run")], capsys)


def test_a_number_without_end_in_a_sentencepiece_model_is_refused_at_once(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "spiece.model").write_bytes(b"\x0a" + b"\xff" * 2_000_000)  # grows with the square: minutes
    with pytest.raises(UserError, match="no SentencePiece model"):
        read_unigram(tmp_path / "spiece.model")


# ---- runs and bundles: old, newer, edited --------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    for name in ("run.json", "metrics.jsonl", "samples.jsonl", "tokenizer.json"):
        shutil.copy(GOLDEN / "run" / name, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("format", "said"),
    [(FORMAT + 1, f"has format {FORMAT + 1}, and this one reads only up to {FORMAT}"), ("1", "unknown format"),
     (True, "unknown format"), (0, "unknown format"), (None, "unknown format")],
)  # fmt: skip
def test_a_run_of_a_newer_or_unknown_format_is_refused_politely(run: Path, format, said: str) -> None:
    body = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**body, "format": format}))
    with pytest.raises(UserError, match=said):
        read_run(run)


def test_every_format_ever_written_has_golden_files_and_a_newer_bundle_is_refused(tmp_path: Path) -> None:
    runs, bundles = ([json.loads(file.read_text())["format"] for file in GOLDEN.glob(name)]
                     for name in ("*/run.json", "*/manifest.json"))  # fmt: skip
    assert {*runs} == {*range(1, FORMAT + 1)}
    assert {*bundles} == {*range(1, BUNDLE_FORMAT + 1)}
    shutil.copytree(GOLDEN / "bundle-fp32", tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    (tmp_path / "b" / "manifest.json").write_text(json.dumps({**manifest, "format": BUNDLE_FORMAT + 1}))
    with pytest.raises(BundleError, match="reads only up to"):
        open_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[" * 60000, "not JSON (it is nested too deep)"),
        ("9" * 5000, "not JSON (Exceeds the limit"),
        ("[1]", "not an object with a kind and a step"),
        ('{"kind": ["train"], "step": 1}', "not an object with a kind and a step"),
        ('{"kind": "train", "step": 1, "loss": "low"}', "loss is 'low', not a number"),
        ('{"kind": "train", "step": 1, "loss": 1' + "0" * 400 + "}", "loss is 1000"),
        ('{"kind": "valid", "step": 1}', "the valid line of step 1 has no loss"),
    ],
)
def test_a_line_of_metrics_that_is_wrong_is_named(run: Path, capsys, line: str, reason: str) -> None:
    metrics = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*metrics[:2], line + "\n", *metrics[2:]]))
    said = refused(compare.main, [str(run), str(run)], capsys)
    assert reason in said
    assert ": remove" in said


def test_infinite_figures_are_compared(run: Path, capsys) -> None:
    metrics = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    metrics[3] = json.dumps({**json.loads(metrics[3]), "loss": math.inf}) + "\n"
    (run / "metrics.jsonl").write_text("".join(metrics))
    out = run.parent / "c.html"
    assert compare.main([str(run), str(run), "--out", str(out)]) == 0
    assert out.is_file()
