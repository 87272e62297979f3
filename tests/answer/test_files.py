"""Whole files of texts: each row comes back with its answer; what is wrong with a file is one line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlm_onnx import Classify
from mlm_onnx.__main__ import main
from mlm_onnx.cli import files
from support.tasks import TASKS, task_bundle

ROWS = ["a cat", "was in", "", "The garden, again", 'said "so"']


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_bundle(tmp_path_factory.mktemp("files") / "b", TASKS["classify"])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_bundle(tmp_path_factory.mktemp("pairs") / "b", TASKS["pair"], family="bert")


FILES: dict[str, tuple[str, list[str], str]] = {
    "a.csv": ('text,label\na cat,x\nwas in,y\n"",\n"The garden, again",z\n"said ""so""",w\n', [], "label"),
    "b.tsv": (
        'sentence\tn\na cat\t1\nwas in\t2\n\t3\nThe garden, again\t4\nsaid "so"\t5\n',
        ["--text", "sentence"],
        "n",
    ),
    "c.jsonl": (
        "\n".join(json.dumps({"t": row, "deep": [1, {"x": None}]}) for row in ROWS) + "\n\n",
        ["--text", "t"],
        "deep",
    ),
    "d.txt": ("\r\n".join(ROWS) + "\r\n", [], "text"),
    "é f\n.csv": (
        "\ufefftext\r\n" + "\r\n".join(["a cat", "was in", '""', '"The garden, again"', '"said ""so"""']),
        [],
        "text",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_each_row_comes_back_with_its_answer(
    name: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    content, options, kept = FILES[name]
    monkeypatch.setattr(files, "AT_ONCE", 2)
    (tmp_path / name).write_bytes(content.encode())
    out = tmp_path / "new" / "out.jsonl"
    assert main(["classify", str(bundle), "--file", str(tmp_path / name), "--out", str(out), *options]) == 0
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    expected = Classify(bundle)(ROWS)
    assert [each["predicted_label" if "label" in content[:12] else "label"] for each in found] == [
        each["label"] for each in expected
    ]
    assert [each["probability"] for each in found] == pytest.approx([each["probability"] for each in expected])
    assert all(kept in each for each in found)
    assert list(out.parent.iterdir()) == [out]
    assert "5 rows in" in capsys.readouterr().err


def test_pairs_are_two_columns(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("text\tsecond\nThe cat\tin the garden\n")
    line = ["classify", str(pairs), "--file", str(tmp_path / "p.tsv"), "--pair", "second", "--out", str(tmp_path / "o")]
    assert main(line) == 0
    (found,) = map(json.loads, (tmp_path / "o").open())
    assert found["label"] == Classify(pairs)(("The cat", "in the garden"))["label"]


WRONG: dict[str, tuple[str, bytes, list[str], str]] = {
    "no such column": (
        "a.csv",
        b"txt,label\na,b\n",
        ["--text", "text"],
        "no column 'text' (it has: txt, label); did you mean txt?",
    ),
    "two columns": ("a.csv", b"one,two\na,b\n", [], "name it with --text COLUMN"),
    "a row without the text": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": 3}\n',
        [],
        "line 2: the field 'text' holds int, not text",
    ),
    "a row that lacks it": ("a.jsonl", b'{"text": "a"}\n\n{"x": "b"}\n', [], "line 3: the field 'text' holds nothing"),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', [], "line 2: not JSON"),
    "not an object": ("a.jsonl", b"[1]\n", [], "line 1: list, where an object"),
    "too many fields": ("a.csv", b"text,n\na,1\nb,2,3\n", [], "line 3: 3 fields, but the first line names 2"),
    "an open quote": ("a.csv", b'text,n\n"a,1\nb,2\n', [], "not a table"),
    "one name twice": ("a.csv", b"text,text\na,b\n", [], "two columns have one name"),
    "not UTF-8": ("a.txt", b"a\n\xff\xfe\n", [], "line 2: not UTF-8"),
    "empty": ("a.csv", b"", [], "there is no row in this file"),
    "only a heading": ("a.csv", b"text\n", [], "there is no row in this file"),
    "another kind": ("a.pdf", b"x", [], "give it such a suffix"),
    "a row that is too long": (
        "a.txt",
        b"a\n" + b"x" * 1_000_001 + b"\n",
        [],
        "line 2: the text has 1000001 characters",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_and_nothing_is_written(name: str, bundle: Path, tmp_path: Path, capsys: Any) -> None:
    file, content, options, message = WRONG[name]
    (tmp_path / file).write_bytes(content)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "found.jsonl"
    assert main(["classify", str(bundle), "--file", str(tmp_path / file), "--out", str(out), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert str(tmp_path / file) in line
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give a TEXT, or --file IN --out OUT"),
        (["a", "--file", "x.txt", "--out", "o"], "give TEXT or --file, not both"),
        (["a", "--out", "o"], "belong to --file"),
        (["a", "--text", "t"], "belong to --file"),
        (["--file", "x.txt"], "--file needs --out"),
        (["--file", "nowhere.txt", "--out", "o"], "--file nowhere.txt: no such file"),
        (["--file", "x.txt", "--out", "."], "--out .: is a folder"),
        (["--file", ".", "--out", "o"], "--file .: is not a file"),
        ([" "], "the text is empty"),
        (["a", "--pair", "b"], "judges one text, not pairs"),
    ],
)
def test_options_that_contradict_each_other(
    options: list[str], message: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("a\n")
    assert main(["classify", str(bundle), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
