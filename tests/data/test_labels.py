"""Labelled files: what is read, and what is refused with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from jax_mlm.data.conll import entities_of, read_tagged, to_iob2
from jax_mlm.data.examples import read_examples
from jax_mlm.data.labels import Columns, check_labels, labels_of, problem_of, read_classified, several
from jax_mlm.errors import UserError


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


TABLES = {
    "a.csv": 'label,text\npos,"a, ""good"" film"\nneg,bad\n',
    "a.tsv": 'text\tlabel\r\na, "good" film\tpos\r\nbad\tneg\r\n',
    "quote.tsv": 'text\tlabel\na, "good" film\tpos\n"bad\tneg\n',
    "a.jsonl": '{"text": "a, \\"good\\" film", "label": "pos"}\n\n{"text": "bad", "label": "neg"}\n',
    "a.json": '[{"text": "a, \\"good\\" film", "label": "pos"}, {"text": "bad", "label": "neg"}]',
    "mark.csv": '\ufefftext,label\n"a, ""good"" film",pos\nbad,neg\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_every_format_holds_the_same_examples(tmp_path: Path, name: str) -> None:
    examples, columns = read_classified(written(tmp_path, name, TABLES[name]), Columns())
    assert [(e.text.strip('"'), e.label) for e in examples] == [('a, "good" film', "pos"), ("bad", "neg")]
    assert columns == Columns("text", "", "label")
    assert labels_of(examples, problem_of(examples)) == ("neg", "pos")


def test_parquet_is_read_as_the_others_are(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"sentence": ["a", "b"], "label": [1, 0]}), tmp_path / "a.parquet")
    examples, columns = read_classified(tmp_path / "a.parquet", Columns())
    assert [(e.text, e.label) for e in examples] == [("a", "1"), ("b", "0")]
    assert columns.text == "sentence"  # the only one beside the label


def test_lines_in_another_order_have_the_same_labels(tmp_path: Path) -> None:
    lines = [f"{word},{label}\n" for word, label in zip("abcdef", "102210", strict=True)]
    both = [
        read_classified(written(tmp_path, f"{i}.csv", "text,label\n" + "".join(order)), Columns())[0]
        for i, order in enumerate((lines, lines[::-1]))
    ]
    assert labels_of(both[0], "single") == labels_of(both[1], "single") == ("0", "1", "2")


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["a", "b"], "single"),
        ([0, 1], "single"),
        ([True, False], "single"),
        ([1.0, 3.5], "regression"),
        (["2", "2.5"], "regression"),
        ([["a"], ["a", "b"], []], "multi"),
        (["1.5", "b"], "single"),
    ],
)
def test_the_labels_tell_the_problem(tmp_path: Path, labels: list[object], problem: str) -> None:
    rows = "".join(json.dumps({"text": "x", "label": label}) + "\n" for label in labels)
    assert problem_of(read_classified(written(tmp_path, "a.jsonl", rows), Columns())[0]) == problem


def test_half_of_an_escaped_pair_can_be_encoded(tmp_path: Path) -> None:
    (example,) = read_classified(written(tmp_path, "a.jsonl", '{"text": "x\\ud83d", "label": "\\ud83d"}'), Columns())[0]
    assert (example.text, example.label) == ("x?", "?")


def test_empty_labels_in_a_list_are_none(tmp_path: Path) -> None:
    rows = '{"text": "x", "label": ["", "a", " "]}\n{"text": "y", "label": [""]}\n{"text": "z", "label": ["b"]}\n'
    examples, _ = read_classified(written(tmp_path, "a.jsonl", rows), Columns())
    assert [e.label for e in examples] == [("a",), (), ("b",)]
    assert labels_of(examples, "multi") == ("a", "b")


def test_one_number_for_all_is_not_a_regression(tmp_path: Path) -> None:
    examples, _ = read_classified(written(tmp_path, "a.csv", "text,label\na,1.5\nb,1.50\n"), Columns())
    with pytest.raises(UserError, match=r"a\.csv, line 2: from here on, every example has the label '1\.5'"):
        labels_of(examples, "regression")


def test_several_labels_stand_in_a_list_or_between_bars() -> None:
    assert several("b | a|b|") == several(("b", "a")) == ("b", "a")


REFUSED = {
    "no such column": ("a.csv", "sentense,label\na,b\n", Columns("sentence"), "did you mean sentense?"),
    "no text": ("a.csv", "a,b,label\nx,y,z\n", Columns(), "no column 'text' (it has: a, b, label)"),
    "no label": ("a.csv", "text,lable\nx,y\n", Columns(), "did you mean lable?"),
    "two columns of a name": ("a.csv", "text,text\nx,y\n", Columns(), "line 1: two columns are called 'text'"),
    "too many fields": ("a.csv", "text,label\nx,y,z\n", Columns(), "line 2: 3 fields"),
    "too few fields": ("a.csv", "label,text\nx\n", Columns(), "line 2: the field 'text' holds nothing"),
    "not JSON": ("a.jsonl", '{"text": "x", "label": "y"}\n{"text"}\n', Columns(), "line 2: not JSON"),
    "not an object": ("a.jsonl", '["x"]\n3\n', Columns(), "not a JSON array"),
    "a number for a text": ("a.jsonl", '{"text": 3, "label": "y"}\n', Columns(), "line 1: the field 'text' holds int"),
    "a label of a wrong kind": ("a.jsonl", '{"text": "x", "label": {}}\n', Columns(), "line 1: the field 'label'"),
    "empty": ("a.csv", "text,label\n", Columns(), "no example"),
    "a NUL": ("a.jsonl", '{"text": "a\\u0000", "label": "y"}', Columns(), "line 1"),
    "no suffix": ("a.data", "text,label\n", Columns(), ".csv, .tsv, .jsonl and .parquet"),
    "missing label": ("a.csv", "text,label\na,b\nc,\n", Columns(), "line 3: the label is missing"),
    "null in a list": (
        "a.jsonl",
        '{"text": "x", "label": ["a", null]}',
        Columns(),
        "holds a list with null",
    ),
    "one label only": (
        "a.csv",
        "text,label\na,b\nc,b\n",
        Columns(),
        "line 2: from here on, every example has",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    file, text, columns, message = REFUSED[name]
    with pytest.raises(UserError) as error:
        labels_of(read_classified(written(tmp_path, file, text), columns)[0], "single")
    assert message in str(error.value)
    assert file in str(error.value)
    assert "\n" not in str(error.value)


def test_a_label_that_was_not_learned_is_named_with_its_line(tmp_path: Path) -> None:
    examples, _ = read_classified(written(tmp_path, "dev.csv", "text,label\na,pos\nb,nge\n"), Columns())
    with pytest.raises(UserError, match=r"dev.csv, line 3: the label 'nge' is not one of .*did you mean neg\?"):
        check_labels(examples, ("neg", "pos"), "single")
    with pytest.raises(UserError, match="line 2: the label 'pos' is not a number"):
        check_labels(examples, (), "regression")
    examples, _ = read_classified(written(tmp_path, "dev.csv", "text,label\na,pos\nb,\n"), Columns())
    check_labels(examples, ("pos",), "single", unlabelled=True)
    with pytest.raises(UserError, match="line 3: the label is missing"):
        check_labels(examples, ("pos",), "single")


def test_a_file_without_labels_can_be_read_for_predictions(tmp_path: Path) -> None:
    examples, columns = read_classified(written(tmp_path, "a.csv", "text,other\nx,y\n"), Columns(), unlabelled=True)
    assert (examples[0].label, columns.label) == (None, "")
    assert examples[0].row == {"text": "x", "other": "y"}


# ---- CoNLL ---------------------------------------------------------------------------------------

WNUT = "-DOCSTART-\tO\n\n#1\tB-person\n#\tO\n\t\nNew\tB-location\nYork\tI-location\nx\tB-creative-work\n \t\n\n"


def test_blank_lines_may_hold_white_space_and_words_may_begin_with_a_hash(tmp_path: Path) -> None:
    examples = read_tagged(written(tmp_path, "a.conll", WNUT)).examples
    assert [e.text for e in examples] == ["#1 #", "New York x"]
    spans = [[(e.text[s.start : s.end], s.label) for s in e.spans or ()] for e in examples]
    assert spans == [[("#1", "person")], [("New York", "location"), ("x", "creative-work")]]


def test_comments_and_further_columns_are_not_words(tmp_path: Path) -> None:
    text = "# sent_id = 3\nEU NNP B-NP B-ORG\n# NN I-NP O\nrejects VBZ B-VP O\r\n"
    examples = read_tagged(written(tmp_path, "a.conll", text)).examples
    assert [e.text for e in examples] == ["EU # rejects"]


def test_spaces_of_other_widths_are_part_of_a_word(tmp_path: Path) -> None:
    words = ["10\u00a0000", "東\u3000京"]
    for blank in (" ", "  ", "\t"):
        text = "".join(f"{word}{blank}B-x\n" for word in words)
        (example,) = read_tagged(written(tmp_path, "a.conll", text)).examples
        assert [example.text[a:b] for a, b in example.words] == words
        assert [example.text[s.start : s.end] for s in example.spans or ()] == words


@pytest.mark.parametrize(
    ("tags", "iob2"),
    [
        ("I-a I-a O I-b I-a", "B-a I-a O B-b B-a"),  # IOB1
        ("I-a B-a I-a", "B-a B-a I-a"),
        ("S-a O B-b I-b E-b S-b", "B-a O B-b I-b I-b B-b"),  # BIOES
        ("U-a B-b L-b", "B-a B-b I-b"),  # BILOU
        ("S-a I-a", "B-a B-a"),
        ("B-a I-a I-b", "B-a I-a B-b"),
    ],
)
def test_other_schemes_become_iob2(tags: str, iob2: str) -> None:
    assert to_iob2(tags.split()) == iob2.split()
    assert to_iob2(iob2.split()) == iob2.split()
    assert [t for t in iob2.split() if t[0] == "B"] == [f"B-{kind}" for _, _, kind in entities_of(iob2.split())]


def test_what_was_converted_is_said(tmp_path: Path) -> None:
    assert read_tagged(written(tmp_path, "a.conll", "a\tB-x\nb\tI-x\n")).remarks == ()
    assert "1 tags I- that continue no entity" in read_tagged(written(tmp_path, "b.conll", "a\tI-x\n")).remarks[0]
    assert "BIOES" in read_tagged(written(tmp_path, "c.conll", "a\tS-x\n")).remarks[0]


TAGGED = {
    "a lost column": (
        "a.conll",
        "# one\n\nEU NNP B-NP B-ORG\n\nof IN B-PP\n",
        "line 5: 3 columns, where line 3 has 4: the tag is missing",
    ),
    "a column more": (
        "a.tsv",
        "EU\tB-ORG\nof\tIN\tO\n",
        "line 2: 3 columns, where line 1 has 2: give",
    ),
    "no tag": ("a.conll", "a\tO\nb\t\n", "line 2: the word 'b' has no tag"),
    "not a tag": ("a.conll", "a\tO\nb\tME\n", "line 2: the tag 'ME'"),
    "no word": ("a.conll", "\tO\n", "line 1: the word is missing"),
    "empty": ("a.conll", "\t\n\n", "no sentence"),
    "a table": ("a.csv", "text,label\nx,y\n", "entities are read from CoNLL columns"),
    "outside": ("a.jsonl", '{"text": "ab", "entities": [{"start": 1, "end": 3, "label": "x"}]}', "line 1: an entity"),
    "overlap": (
        "a.jsonl",
        '{"text": "abc", "entities": [{"start": 0, "end": 2, "label": "x"}, {"start": 1, "end": 3, "label": "y"}]}',
        "overlap",
    ),
    "another text": (
        "a.jsonl",
        '{"text": "abc", "entities": [{"start": 0, "end": 1, "label": "x", "text": "b"}]}',
        "the text has 'a', not 'b'",
    ),
    "too few tags": ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', "line 1: tags must be a list of 2 tags"),
    "no entities": ("a.jsonl", '{"text": "abc", "entitis": []}', "did you mean entitis?"),
}


@pytest.mark.parametrize("name", TAGGED)
def test_what_is_wrong_with_entities_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    file, text, message = TAGGED[name]
    with pytest.raises(UserError) as error:
        read_tagged(written(tmp_path, file, text))
    assert message in str(error.value)
    assert file in str(error.value)


def test_compressed_files_are_read_by_the_suffix_before(tmp_path: Path) -> None:
    rows = '{"tokens": ["in", "Rome"], "tags": ["O", "B-x"]}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "a.conll.gz").write_bytes(gzip.compress(b"in\tO\nRome\tB-x\n"))
    first, second = (read_tagged(tmp_path / f"a.{name}.gz").examples for name in ("jsonl", "conll"))
    assert [(e.text, e.spans) for e in first] == [(e.text, e.spans) for e in second]


def test_json_lines_hold_words_or_offsets(tmp_path: Path) -> None:
    rows = (
        '{"tokens": ["in", "Rome"], "ner_tags": ["O", "I-x"]}\n'
        '{"text": "in Rome", "entities": [{"start": 3, "end": 7, "label": "x", "text": "Rome"}]}\n'
    )
    first, second = read_tagged(written(tmp_path, "a.jsonl", rows)).examples
    assert (first.text, first.spans) == (second.text, second.spans)


@pytest.mark.slow
def test_the_real_files_are_read_whole(shared_data: Path) -> None:
    sst2 = [str(shared_data / "sst2" / name) for name in ("train.tsv", "dev.tsv")]
    read = read_examples("classify", *sst2, "", Columns())
    assert (len(read.train) + len(read.choose), len(read.report)) == (67_349, 872)
    assert labels_of(read.train, "single") == ("0", "1")
    assert not {e.text.strip() for e in read.train} & {e.text.strip() for e in read.choose}
    assert [remark.split(" (")[0] for remark in read.remarks] == [
        "371 texts have occurred before",
        "5 texts have another label than before",
    ]
    dev = read_tagged(shared_data / "wnut17" / "emerging.dev.conll")
    assert (len(dev.examples), sum(len(e.spans or ()) for e in dev.examples), dev.remarks) == (1009, 836, ())
    assert all(e.text[a:b] == w for e in dev.examples for (a, b), w in zip(e.words, e.text.split(" "), strict=True))
