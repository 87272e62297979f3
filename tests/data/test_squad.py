"""Questions and answers: what is read, what is refused with its line, and which tokens an answer is laid on."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from jax_mlm.data.examples import split_by_text
from jax_mlm.data.labelled import pack_windows
from jax_mlm.data.labels import Columns, Example
from jax_mlm.data.spans import lay_questions
from jax_mlm.data.squad import read_questions
from jax_mlm.data.tokenizer import Kind, VocabularyTooLarge, train_tokenizer
from jax_mlm.errors import UserError

CONTEXT = "Angela Merkel met Émile 🙂 in New York, on Monday: it's #1!"
QUESTIONS = ("Who met Émile?", "Where?", "Why?")
STARTS = ((0, 7), (29,), ())
TEXTS = (("Angela Merkel", "Merkel"), ("New York",), ())


def answers(number: int) -> list[dict[str, object]]:
    return [{"text": t, "answer_start": s} for t, s in zip(TEXTS[number], STARTS[number], strict=True)]


def nested(**first: object) -> dict[str, Any]:
    qas: list[dict[str, object]] = [
        {"id": f"q{i}", "question": question, "answers": answers(i)} for i, question in enumerate(QUESTIONS)
    ]
    qas[0] |= first
    qas[2]["is_impossible"] = True
    return {"version": "v2.0", "data": [{"title": "x", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}


def hub(number: int) -> dict[str, object]:
    pairs = {"text": list(TEXTS[number]), "answer_start": list(STARTS[number])}
    return {"id": f"q{number}", "context": CONTEXT, "question": QUESTIONS[number], "answers": pairs}


def flat(number: int) -> dict[str, object]:
    text, start = (TEXTS[number] or ("",))[0], (STARTS[number] or ("",))[0]
    return {"question": QUESTIONS[number], "context": CONTEXT, "answer": text, "answer_start": start}


def table(delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(flat(0)), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(map(flat, range(3)))
    return out.getvalue()


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES = {
    "one-line.json": json.dumps(nested()),
    "several-lines.json": json.dumps(nested(), indent=1, ensure_ascii=False),
    "articles.jsonl": lines(nested()["data"]),
    "hub.jsonl": lines([hub(i) for i in range(3)]),
    "hub.json": json.dumps({"data": [hub(i) for i in range(3)]}),
    "list.json": json.dumps([{**hub(i), "answers": answers(i)} for i in range(3)]),
    "columns.jsonl": lines([{**hub(i), "answers": None, "answer": list(TEXTS[i]), "answer_start": list(STARTS[i])}
                            for i in range(3)]),
    "first.csv": table(","),
    "first.tsv": table("\t"),
    "floats.csv": table(",").replace(",29", ",29.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_format_holds_the_same_questions(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    read = read_questions(tmp_path / name, Columns())
    assert [(e.text, e.pair) for e in read] == [(CONTEXT, question) for question in QUESTIONS]
    found = [[e.text[start:end] for start, end in e.answers or ()] for e in read]
    most = 1 if name.startswith(("first", "floats")) else 2
    assert found == [list(texts[:most]) for texts in TEXTS]
    assert read[2].answers == ()
    assert all(e.row is not None and e.row["question"] == e.pair and e.row["context"] == e.text for e in read)


def test_parquet_and_columns_of_other_names_are_read(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    import pyarrow.parquet as pq

    rows = [{"q": QUESTIONS[i], "c": CONTEXT, "found": {"text": TEXTS[i], "answer_start": STARTS[i]}} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = read_questions(tmp_path / "a.parquet", Columns("c", "q", "found"))
    assert [e.answers for e in read] == [((0, 13), (7, 13)), ((29, 37),), ()]
    (tmp_path / "b.jsonl").write_text(lines([{"q": "Where?", "c": CONTEXT, "found": "New York", "found_start": 29}]))
    assert read_questions(tmp_path / "b.jsonl", Columns("c", "q", "found"))[0].answers == ((29, 37),)


def test_files_without_answers_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    for number, rows in enumerate(
        ([{**flat(0), "answer": "", "answer_start": ""}], [{"question": "?", "context": "x"}])
    ):
        (path := tmp_path / f"{number}.jsonl").write_text(lines(rows))
        assert [e.answers for e in read_questions(path, Columns(), unlabelled=True)] == [None]
    both = tmp_path / "both.jsonl"
    both.write_text(lines([{"question": "?", "context": "x"}, flat(1), flat(2)]))
    assert [e.answers for e in read_questions(both, Columns(), unlabelled=True)] == [None, ((29, 37),), ()]
    said = [{"question": "?", "context": "x", "answer": "", "is_impossible": value} for value in ("False", "True")]
    both.write_text(lines(said))
    assert [e.answers for e in read_questions(both, Columns(), unlabelled=True)] == [None, ()]


AT = {"answers": [{"text": "Merkel", "answer_start": 6}]}
WRONG: dict[str, tuple[str, Any, str]] = {
    "an answer elsewhere": ("a.json", nested(**AT), "question q0: at answer_start 6 the context has ' Merke'.* at 7"),
    "an answer nowhere": ("a.json", nested(answers=[{"text": "Bonn", "answer_start": 0}]), "'Bonn', which does not"),
    "a negative start": ("a.json", nested(answers=[{"text": "!", "answer_start": -1}]), "at answer_start -1"),
    "a start of many digits": ("a.json", nested(answers=[{"text": "Merkel", "answer_start": 10**400}]),
                               "question q0: the answer 'Merkel' has answer_start '10000"),
    "no start": ("a.json", nested(answers=[{"text": "Merkel"}]), "question q0: the answer 'Merkel' has answer_start"),
    "a number": ("a.json", nested(answers=[{"text": 1, "answer_start": 0}]), "question q0: an answer has the text '1'"),
    "impossible": ("a.json", nested(is_impossible=True), "question q0: is_impossible, though it has an answer"),
    "possible": ("a.json", nested(is_impossible=False, answers=[]), "question q0: is_impossible is false"),
    "perhaps": ("a.json", nested(is_impossible="perhaps"), "question q0: is_impossible is 'perhaps'"),
    "no answers": ("a.json", {"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "?"}]}]}]},
                   r"data\[0\].paragraphs\[0\].qas\[0\]: no field 'answers'"),
    "no questions": ("a.json", {"data": [{"paragraphs": [{"context": "x"}]}]}, "the field 'qas' must be a list"),
    "no context": ("a.json", {"data": [{"paragraphs": [{"qas": []}]}]}, r"paragraphs\[0\]: a paragraph needs"),
    "nothing": ("a.json", {"data": []}, "there is no question"),
    "a broken file": ("a.json", '{\n"data": [\n1,,\n', "a.json: not a JSON array or object.*line 3"),
    "a broken line": ("a.jsonl", '{"question": \n', "a.jsonl, line 1: not JSON"),
    "no column": ("a.jsonl", '{"qestion": "?", "context": "x", "answer": ""}', "did you mean qestion.* --pair"),
    "no column of answers": ("a.jsonl", '{"question": "?", "context": "x"}', "no column 'answer'.* --label"),
    "more texts than starts": ("a.jsonl", lines([{**flat(0), "answer": ["Angela", "met"], "answer_start": [0]}]),
                               "line 1: the answer 'met' has answer_start 'None'"),
    "half of a pair": ("a.jsonl", '{"question": "?", "context": "x\\ud83d", "answer": ""}', "half of an escaped pair"),
    "a label": ("a.jsonl", '{"question": "?", "context": "x", "answer": 3}', "line 1: the field 'answer' holds '3'"),
    "a table": ("a.csv", "question,context,answer,answer_start\n?,x,y,0\n", "a.csv, line 2: at answer_start 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_named_with_its_line_or_question(name: str, tmp_path: Path) -> None:
    file, content, message = WRONG[name]
    (tmp_path / file).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_questions(tmp_path / file, Columns())


def test_all_questions_about_a_context_are_on_one_side_of_the_split() -> None:
    examples = [Example(f"line {i}", f"text {i % 100}", f"question {i}", answers=()) for i in range(400)]
    learned, choosing = split_by_text(examples)
    assert len(learned) + len(choosing) == 400
    assert not {e.text for e in learned} & {e.text for e in choosing}


# ---- answers to tokens ---------------------------------------------------------------------------

KINDS: tuple[Kind, ...] = ("wordpiece", "bpe", "unigram")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    text = [CONTEXT.replace("🙂 ", ""), "the plain words of a longer text in between, and who met where"] * 8
    try:
        return train_tokenizer(text, request.param, 320)
    except VocabularyTooLarge as error:
        return train_tokenizer(text, request.param, error.reachable)


def drawn(count: int = 30) -> list[Example]:
    """Return questions about texts of words, with answers of whole words."""
    rng, words = np.random.default_rng(0), CONTEXT.replace("🙂 ", "").split()
    examples = []
    for number in range(count):
        chosen = [str(word) for word in rng.choice(words, rng.integers(1, 40))]
        starts = np.cumsum([0, *(len(word) + 1 for word in chosen)])
        a, b = sorted(rng.integers(0, len(chosen), 2))
        span = (int(starts[a]), int(starts[b]) + len(chosen[b]))
        spans = () if number % 5 == 0 else (span, (0, 1))
        examples.append(Example(f"file, line {number}", " ".join(chosen), "who met Émile?", answers=spans))
    return examples


@pytest.mark.parametrize("length", [32, 256])
def test_an_answer_is_what_its_tokens_hold_and_its_question_is_whole(tokenizer: Tokenizer, length: int) -> None:
    examples = drawn()
    asked = lay_questions(tokenizer, examples, length, length // 8)
    assert any("read in windows" in remark for remark in asked.remarks) == (length == 32)
    w, seen = asked.windows, set()
    covered = [set[int]() for _ in examples]
    for number, (a, b) in enumerate(itertools.pairwise(w.first)):
        owner = asked.owners[number]
        example, tokens = examples[owner], w.tokens[a:b].tolist()
        whole = tokenizer.encode(example.pair or "", example.text)
        question = whole.sequence_ids.index(1)
        assert tokens[:question] == whole.ids[:question]
        assert tokens[-1] == whole.ids[-1]
        assert w.types[a:b].tolist() == [*whole.type_ids[:question], *[whole.type_ids[-1]] * (b - a - question)]
        inside, offsets = asked.inside[a:b], asked.offsets[a:b]
        assert not inside[:question].any()
        assert len(tokens) <= length
        covered[owner] |= {int(at) for begin, end in offsets[inside] for at in range(begin, end)}
        first, last = asked.targets[number]
        if first or last:
            start, end = (example.answers or ())[0]
            assert inside[first]
            assert (offsets[first, 0], offsets[last, 1]) == (start, end)
            seen.add(owner)
        if len(whole.ids) <= length:
            assert tokens == whole.ids
    assert all(len(chars) == len(e.text.replace(" ", "")) for e, chars in zip(examples, covered, strict=True))
    assert (asked.known == 1).all()
    if length == 256:
        assert seen == {number for number, example in enumerate(examples) if example.answers}
    rows = pack_windows(w, asked.targets, asked.known, length, pad=0)
    batch = rows.gather(np.arange(len(rows)))
    used = batch.items >= 0
    assert sorted(batch.items[used]) == list(range(len(asked.owners)))
    np.testing.assert_array_equal(batch.targets[used], asked.targets[batch.items[used]])


def test_answers_that_tokens_do_not_hold_are_counted_with_their_question(tokenizer: Tokenizer) -> None:
    given = [
        Example("f, line 1", "in New York", "Where?", answers=((4, 6),)),  # within a word
        Example("f, line 2", "in New York ", "Where?", answers=((2, 12),)),  # white space does not belong to an answer
        Example("f, line 3", "in New York", "", answers=()),
    ]
    asked = lay_questions(tokenizer, given, 64, 4)
    for number in (0, 1):
        first, last = asked.targets[number] + asked.windows.first[number]
        start, end = asked.offsets[first, 0], asked.offsets[last, 1]
        assert given[number].text[start:end] in (("ew", "New", "New York")[number:] if number else ("ew", "New"))
    assert not any("line 2" in remark for remark in asked.remarks)
    assert any("1 questions or contexts are empty (the first: f, line 3)" in remark for remark in asked.remarks)


def test_a_long_question_is_cut_and_said_and_a_window_without_room_is_refused(tokenizer: Tokenizer) -> None:
    given = [Example("f, line 9", CONTEXT, CONTEXT * 3, answers=((29, 37),))]
    asked = lay_questions(tokenizer, given, 48, 4)
    assert any("questions take more than half of a window and were cut" in r and "line 9" in r for r in asked.remarks)
    assert {at for begin, end in asked.offsets[asked.inside] for at in range(begin, end)} >= set(range(29, 32))
    assert max(np.diff(asked.windows.first)) <= 48
    for length, overlap, message in ((4, 0, "--length 4"), (48, 40, "--overlap 40")):
        with pytest.raises(UserError, match=message):
            lay_questions(tokenizer, given, length, overlap)
    with pytest.raises(UserError, match="no special token before a text"):
        lay_questions(train_tokenizer([CONTEXT], "word", 15), given, 48, 4)
