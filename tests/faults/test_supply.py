"""What a file may never do: nothing on a path from a file unpickles, evaluates or runs it."""

from __future__ import annotations

import ast
import pickle
import shutil
from pathlib import Path

import pytest
from mlm_onnx import FillMask
from mlm_onnx.bundle import open_bundle
from support.paths import ROOT

from jax_mlm.config import DataConfig
from jax_mlm.data.prepare import prepare
from jax_mlm.data.sources import documents
from jax_mlm.data.tokenizer import load_tokenizer, vocabulary_of
from jax_mlm.hf.directory import export_hf, read_hf
from jax_mlm.report.summary import summarise
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run

GOLDEN = ROOT / "tests" / "golden"
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "yaml",
    "pickle",
    "cPickle",
}
BETWEEN_PROCESSES = "jax_mlm/data/encoding.py"
"""Sends work to processes that it has started, through pipes that nobody else has."""


def test_no_source_names_what_runs_a_file() -> None:
    found = {}
    for file in (*(ROOT / "jax_mlm").rglob("*.py"), *(ROOT / "export" / "mlm_onnx").rglob("*.py")):
        named = set[str]()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Import(names):
                    named |= {alias.name.partition(".")[0] for alias in names}
                case ast.ImportFrom(module=str(module)):
                    named.add(module.partition(".")[0])
                case ast.Call(func=ast.Name(name)):
                    named.add(name)
                case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                    named.add("pickle")
                case ast.Call(func=ast.Attribute(ast.Name("torch"), "load")):
                    named.add("pickle")
        if wrong := named & FORBIDDEN:
            found[file.relative_to(ROOT).as_posix()] = wrong
    assert found == {BETWEEN_PROCESSES: {"pickle"}}


def test_every_reader_works_where_unpickling_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a b", "c d"]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"text": "a b"}\n')
    (tmp_path / "a.csv").write_text("id,text\n1,a b\n")
    shutil.copy(GOLDEN / "text.txt", tmp_path / "a.txt")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("a.parquet", "a.jsonl", "a.csv", "a.txt"):
        assert next(documents([tmp_path / name], "line", "text"))
    run = GOLDEN / "run"
    tokenizer = load_tokenizer(run / "tokenizer.json")
    assert prepare([tmp_path / "a.txt"], tokenizer, vocabulary_of(tokenizer), DataConfig(), tmp_path / "cache").figures
    assert read_run(run).model.layers == 2
    assert summarise(run).final
    assert load_params(run)[0] == 120
    export_hf(run, tmp_path / "hf")
    assert read_hf(tmp_path / "hf").model.layers == 2
    open_bundle(GOLDEN / "bundle-int8")
    assert FillMask(GOLDEN / "bundle-int8", threads=1)("the old miller [MASK] the door")["masks"]
