"""Whole files of texts: each row comes back with its answer; what is wrong with a file is one line that names it."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlm_onnx import Classify
from mlm_onnx.__main__ import main
from mlm_onnx.cli import files
from mlm_onnx.cli.files import Column, answer_file, separator_of
from support.tasks import TASKS, task_bundle

from jax_mlm.data import tables

ROWS = ["a cat", "was in", "", "The garden, again", 'said "so"']


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_bundle(tmp_path_factory.mktemp("files") / "b", TASKS["classify"])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    learned = replace(TASKS["pair"], columns=("first", "second", "judgement"))
    return task_bundle(tmp_path_factory.mktemp("pairs") / "b", learned, family="bert")


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
    expected = Classify(pairs)(("The cat", "in the garden"))["label"]
    for heading, options in (
        ("text\tother\tsecond", ["--pair", "other"]),
        ("first\tsecond\ttext", []),  # those that were learned
        ("first\tpair\tjudgement", []),
        ("body\tsecond\tjudgement", []),
    ):
        (tmp_path / "p.tsv").write_text(f"{heading}\nThe cat\tin the garden\tx\n")
        line = ["classify", str(pairs), "--file", str(tmp_path / "p.tsv"), "--out", str(tmp_path / "o"), *options]
        assert main(line) == 0
        (found,) = map(json.loads, (tmp_path / "o").open())
        assert found["label"] == expected


def test_what_cannot_be_encoded_is_replaced_wherever_it_stands(bundle: Path, tmp_path: Path) -> None:
    row = {"text": "a \ud83d cat", "id": "\ud83d", "deep": [{"\udc00": ["x\udc00", 3]}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert main(["classify", str(bundle), "--file", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "o")]) == 0
    (found,) = map(json.loads, (tmp_path / "o").open(encoding="utf-8"))
    assert {name: found[name] for name in row} == {"text": "a ? cat", "id": "?", "deep": [{"?": ["x?", 3]}]}


def answered(tmp_path: Path, name: str, content: str, *columns: Column, label: str = "") -> list[list[tuple[str, ...]]]:
    """Return the texts that are read from a file, in the parts in which they are answered."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    parts: list[list[tuple[str, ...]]] = []

    def answer(texts: list[tuple[str, ...]]) -> list[Any]:
        parts.append(texts)
        return [{}] * len(texts)

    options = argparse.Namespace(file=tmp_path / name, out=tmp_path / "o")
    answer_file(options, columns, answer, label)
    return parts


TEXT_COLUMN = Column("--text", None, "", "text", only=True)


def test_a_part_ends_after_so_many_rows_or_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "AT_ONCE", 3)
    monkeypatch.setattr(files, "BYTES_AT_ONCE", 100)
    rows = ["x" * size for size in (1, 1, 1, 1, 200, 1, 50, 60, 1)]
    for name, heading in (("a.txt", ""), ("a.csv", "text\n"), ("a.tsv", "text\n")):
        parts = answered(tmp_path, name, heading + "\n".join(rows), TEXT_COLUMN)
        assert [len(part) for part in parts] == [3, 2, 3, 1]
        assert [text for part in parts for (text,) in part] == rows


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.txt", "a\n" + "x" * 100 + "\n", 2),
        ("a.jsonl", '{"text": "a"}\n{"text": "' + "x" * 100, 2),
        ("a.csv", "text\na\n" + "x" * 100, 3),
        ("a.csv", "x" * 100, 1),
        ("a.csv", 'text,n\na,1\n"' + "x\n" * 100 + '",2\n', 3),
        ("a.tsv", "text\n" + "x" * 100, 2),
    ],
)
def test_a_row_without_end_is_refused_by_its_line(
    name: str, content: str, line: int, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(files, "LONGEST_ROW", 64)
    (tmp_path / name).write_text(content)
    assert main(["classify", str(bundle), "--file", str(tmp_path / name), "--out", str(tmp_path / "o")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{name}, line {line}: a row of more than" in error
    assert not (tmp_path / "o").exists()


HEADINGS = ("text,label", "text;label", "label\ttext", "text|label", "a;b,text", "a,b;c|text", "a,b;c", "a|b", "text",
            "", " text ;x,y", '"a,text";b', '"text";"b,c"', 'a"b;text', '"a;b\n', "a,text;b", "é;text\r\n")  # fmt: skip


def test_separators_are_those_of_training(tmp_path: Path) -> None:
    for separators in files.TABLES.values():
        for wanted in ("text", "b", ""):
            ours = [separator_of(line, [wanted], separators) for line in HEADINGS]
            assert ours == [tables.separator_of(line, wanted, separators) for line in HEADINGS]
    for heading in ("n;text", "n|text", "n\ttext", "n;text;a,b", "n,text"):
        separator = heading[1]
        row = separator.join(("1", '"a cat, and another"', "x")) + "\n"
        parts = answered(tmp_path, "a.csv", f"{heading}{separator}z\n{row}", TEXT_COLUMN)
        assert parts == [[("a cat, and another",)]]
    quoted = answered(tmp_path, "a.tsv", 'text\tn\n"so he said\t1\nx\t2\n', TEXT_COLUMN)
    assert quoted == [[('"so he said',), ("x",)]]


SECOND = Column("--pair", None, "", "pair")
CHOSEN: dict[str, tuple[str, tuple[Column, ...], str, tuple[str, ...]]] = {
    "its usual name": ("body,text,label", (TEXT_COLUMN,), "", ("text",)),
    "the only one": ("body", (TEXT_COLUMN,), "", ("body",)),
    "the only one beside the label": ("body,label", (TEXT_COLUMN,), "", ("body",)),
    "the only one beside the label that was learned": ("stars,body", (TEXT_COLUMN,), "stars", ("body",)),
    "the one that was learned": ("text,body", (TEXT_COLUMN._replace(learned="body"),), "", ("body",)),
    "the usual one where that is missing": ("text,x", (TEXT_COLUMN._replace(learned="body"),), "", ("text",)),
    "the one that is given": ("text,body", (TEXT_COLUMN._replace(given="body", learned="text"),), "", ("body",)),
    "beside a pair": ("body,pair,label", (TEXT_COLUMN, SECOND), "", ("body", "pair")),
    "beside a pair that is given": ("other,body", (TEXT_COLUMN, SECOND._replace(given="other")), "", ("body", "other")),
    "beside a pair called text": ("text,body", (TEXT_COLUMN, SECOND._replace(given="text")), "", ("body", "text")),
    "both learned": (
        "a,b,text,pair",
        (TEXT_COLUMN._replace(learned="a"), SECOND._replace(learned="b")),
        "",
        ("a", "b"),
    ),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_columns_are_found(name: str, tmp_path: Path) -> None:
    heading, columns, label, expected = CHOSEN[name]
    assert answered(tmp_path, "a.csv", f"{heading}\n{heading}\n", *columns, label=label) == [[expected]]


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
    "a second text": ("a.csv", b"text,pair\na,b\n", ["--pair", "pair"], "line 2: the model judges one text, not pairs"),
    "one column twice": (
        "a.csv",
        b"text,n\na,b\n",
        ["--text", "n", "--pair", "n"],
        "must name different columns, not n, n",
    ),
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
