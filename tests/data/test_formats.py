"""Tables, encodings, standard input and folders: what is read is what the files hold, and what is not is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import sys
from pathlib import Path

import pytest

from jax_mlm.data import decoding, sources, tables
from jax_mlm.data.sources import documents, expand, find_sources, spooled
from jax_mlm.errors import UserError

TEXTS = [
    "plain words",
    'a "quoted" word, and a comma',
    "two\nlines, one field",
    "a\ttab; a semicolon | a bar",
    'ends with a quote"',
    "naïve 日本語 می\u200cخواهم 👩\u200d🌾",
    "x" * 200_000,
]


def table(path: Path, header: list[str], rows: list[list[str]], **style: object) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **style).writerows([header, *rows])
    return path


def read(path: Path, field: str = "text", document: str = "line") -> list[str]:
    out: list[str] = []
    for block in sources.blocks(path, document, field):
        for text, starts in zip(block.texts, block.starts, strict=True):
            out[len(out) if starts else len(out) - 1 :] = [text if starts else out[-1] + text]
    return out


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("block", [50, 1 << 20])
@pytest.mark.parametrize("ends", ["\r\n", "\n"])
def test_a_table_gives_its_column_whatever_the_fields_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str, block: int, ends: str
) -> None:
    monkeypatch.setattr(sources, "BLOCK", block)
    texts = TEXTS if block > 50 else TEXTS[:-1]
    rows = [[str(i), text, "pos"] for i, text in enumerate(texts)]
    path = table(tmp_path / "a.csv", ["id", "body", "label"], rows, delimiter=separator, lineterminator=ends)
    assert read(path, "body") == texts
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path, "id") == [str(i) for i in range(len(texts))], "a mark is not part of the first column's name"
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed, "body") == texts


def test_tsv_is_read_with_quotes_and_without(tmp_path: Path) -> None:
    quoted = table(tmp_path / "a.tsv", ["text", "n"], [[text, "1"] for text in TEXTS], delimiter="\t")
    assert read(quoted) == TEXTS
    bare = tmp_path / "b.tsv"
    bare.write_text('text\tlabel\n"an opening quote\t1\n5" wide\t0\nplain\t1\nand "so" on\t0\n')
    assert read(bare) == ['"an opening quote', '5" wide', "plain", 'and "so" on']


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "id,label,body\n1,pos,x\n", r"no column 'text' \(it has: id, label, body\).*--text-field"),
        ("b.tsv", "id\tbody\n1\tx\n", r"no column 'text' \(it has: id, body\).*--text-field"),
        ("c.csv", 'text\n"a"\n\n"never closed\nx\n', "line 4: .*a quote that nothing closes"),
        ("d.csv", 'text,n\na,1\n"b"c,2\n', "line 3: not a table"),
        ("e.csv", "n,text\n1,hello, world\n", "line 2: 3 fields, but the first line names 2"),
        ("f.csv", "n,text\n1,a\n2\n", "line 3: 1 fields, too few to hold 'text'"),
        ("g.csv", "text\na\0b\n", "NUL"),
        ("h.jsonl", json.dumps({"text": "a\0b"}) + "\n", "line 1: the text holds a NUL"),
    ],
)
def test_bad_tables_are_named_with_the_line(tmp_path: Path, name: str, content: str, reason: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=reason) as error:
        list(documents([path], "line", "text"))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_quote_left_open_does_not_take_the_rest_of_the_file_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "LONGEST_FIELD", 1000)
    path = tmp_path / "a.csv"
    path.write_text('text\nfine\n"open\n' + "more\n" * 1000)
    with pytest.raises(UserError, match=r"line 3: .*a quote that nothing closes"):
        read(path)


LINES = ["xin chào tôi đến từ Việt Nam", "привет мир", "我感染了 新冠肺炎病毒", "plain", "👩\u200d🌾 emoji"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-8"])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_a_mark_tells_the_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, block: int) -> None:
    monkeypatch.setattr(sources, "BLOCK", block)
    text = "\ufeff" + "\r\n".join(LINES) + "\r\n"
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read(tmp_path / "a.txt") == LINES
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode(encoding)))
    assert read(tmp_path / "b.txt.gz", document="blank") == ["\n".join(LINES)]
    rows = "\ufeff" + "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in LINES)
    (tmp_path / "c.jsonl").write_bytes(rows.encode(encoding))
    assert read(tmp_path / "c.jsonl") == LINES


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        *(
            (line.encode("utf-16-le"), "iconv -f UTF-16LE")
            for line in ("hello there\n", "xin chào bạn\n", "привет мир\n")
        ),
        *(
            (line.encode("utf-16-be"), "iconv -f UTF-16BE")
            for line in ("hello there\n", "xin chào bạn\n", "привет мир\n")
        ),
        ("xin chào".encode("utf-16").decode("latin-1").encode(), "NUL character at byte"),
        ("größe\n".encode("cp1252"), "iconv -f CP1252"),
        ("привет\n".encode("cp1251"), "CP1251 for Cyrillic"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "it is a PDF"),
        (b"PK\x03\x04\x14\0\0\0", "it is a ZIP archive"),
        (b"an ordinary line of text\n" * 9 + b"\0", "tr -d"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0\0\0\1\0\x08\6\0\0\0\n", "a binary file"),
    ],
)
def test_what_is_no_utf8_text_is_refused_with_the_advice_that_helps(
    tmp_path: Path, content: bytes, advice: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path)
    assert advice in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("cut", [1, 3])
def test_utf16_that_ends_within_a_character_is_damaged(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffab👩".encode("utf-16-le")[:-cut])
    with pytest.raises(UserError, match="damaged UTF-16"):
        read(path)


@pytest.mark.parametrize("suffix", sorted(sources.FOREIGN))
def test_what_is_not_text_is_refused_by_name_however_it_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"page{suffix.upper()}"
    path.write_bytes(b"%PDF-1.7 \xff\0")
    for pattern in (str(path), str(tmp_path / "pag*")):
        with pytest.raises(UserError, match=f"{suffix} is not read: (take|save|unpack|put)") as error:
            expand([pattern])
        assert str(path) in str(error.value)
    with pytest.raises(UserError, match="is not read"):
        list(documents([path], "line", "text"))


def test_a_folder_says_what_it_leaves_out_and_what_takes_it(tmp_path: Path) -> None:
    for name in ("README.md", "src/a.py", "src/deep/b.py", "src/c.rs", "doc/m.pdf", ".git/config", "empty.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else "text")
    found = find_sources([str(tmp_path)])
    assert [path.name for path in found.files] == ["README.md"]
    assert found.left_out == {f"{tmp_path}/**/*.py": 2, f"{tmp_path}/**/*.rs": 1, f"{tmp_path}/**/*.pdf": 1}
    taken = {pattern: find_sources([pattern]).files for pattern in found.left_out if not pattern.endswith("pdf")}
    assert [len(files) for files in taken.values()] == [2, 1], "the glob that is proposed takes what was left out"


@pytest.mark.parametrize("name", ["AA/wiki_00", "wiki_00", "a/b/c.xyz"])
def test_a_folder_without_text_proposes_a_glob_that_works(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("text")
    with pytest.raises(UserError, match="no text in this folder") as error:
        expand([str(tmp_path)])
    pattern = str(error.value).split("'")[1]
    assert [str(path) for path in expand([pattern])] == [str(tmp_path / name)]


class Input:
    """Standard input that holds these bytes."""

    def __init__(self, content: bytes, terminal: bool = False) -> None:
        self.buffer, self.isatty = io.BytesIO(content), lambda: terminal


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (b"one\ntwo\n", ".txt"),
        (b'{"text": "one"}\n{"text": "two"}\n', ".jsonl"),
        (b'[{"text": "one"},\n{"text": "two"}]\n', ".jsonl"),
        (b'id,text\n1,"one"\n2,two\n', ".csv"),
        ("\ufeffid;text\r\n1;one\r\n2;two\r\n".encode("utf-16-le"), ".csv"),
        (b"id\ttext\n1\tone\n2\ttwo\n", ".tsv"),
        (gzip.compress(b"one\ntwo\n", mtime=0), ".gz"),
        ("\ufeffone\ntwo\n".encode("utf-16-le"), ".txt"),
    ],
)
def test_standard_input_is_kept_by_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, suffix: str
) -> None:
    monkeypatch.setattr(sys, "stdin", Input(content))
    other, name = spooled(["a.txt", "-"], "--data", tmp_path, "text")
    assert (other, Path(name).suffix) == ("a.txt", suffix)
    assert list(documents(expand([name]), "line", "text")) == ["one", "two"]
    monkeypatch.setattr(sys, "stdin", Input(content))
    assert spooled(["-"], "--data", tmp_path, "text") == (name,)
    assert [path.name for path in (tmp_path / "stdin").iterdir()] == [Path(name).name]


def test_an_empty_input_and_a_terminal_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, reason in ((Input(b""), "empty"), (Input(b"x", terminal=True), "terminal"), (None, "terminal")):
        monkeypatch.setattr(sys, "stdin", given)
        with pytest.raises(UserError, match=f"--valid -: standard input is .*{reason}"):
            spooled(["-"], "--valid", tmp_path, "text")
    assert spooled(["a.txt"], "--data", tmp_path, "text") == ("a.txt",)


def test_a_separator_is_the_one_that_makes_the_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id;"Name, Vorname";text\n1;Uhu, Ute;one, two\n')
    assert read(tmp_path / "a.csv") == ["one, two"]


@pytest.mark.parametrize("more", [' {"text": "b"}', "\n" * 70 + '[{"text": "b"}]'])
def test_nothing_after_a_json_array_is_lost_in_silence(
    tmp_path: Path, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK", 16)
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}]\n')
    assert read(path) == ["a"]
    path.write_text('[{"text": "a"}]' + more)
    with pytest.raises(UserError, match="text after the end of the JSON array"):
        read(path)


def test_a_glob_leaves_out_what_is_not_text_as_a_folder_does(tmp_path: Path) -> None:
    for name in ("a.log", "b.html", "c.png"):
        (tmp_path / name).write_bytes(b"\0" if "png" in name else b"text")
    found = find_sources([str(tmp_path / "*[gl]")])
    assert [file.name for file in found.files] == ["a.log", "c.png"], "a suffix tells; content is refused when read"
    assert found.left_out == {f"{tmp_path}/**/*.html": 1}
    assert [sources.may_be_text(f"{tmp_path}/**/*.{suffix}") for suffix in ("log", "html", "png")] == [
        True,
        False,
        False,
    ]
    with pytest.raises(UserError, match=r"a glob takes others: --data '.*\*\.log'"):
        find_sources([str(tmp_path)])
    (tmp_path / "a.log").unlink()
    with pytest.raises(UserError, match=r"\.html is not read"):
        find_sources([str(tmp_path)])
    with pytest.raises(UserError, match="--data '': give a file"):
        find_sources([""])


def test_random_bytes_are_never_read_as_something_else(tmp_path: Path) -> None:
    """Whatever cuts and marks there are, the text of a UTF-16 file is that of the same file in UTF-8."""
    draw = random.Random(0)
    alphabet = "ab \n\u00e9\u0640\u4e00\U0001f469\u200d"
    for _ in range(30):
        text = "x" + "".join(draw.choices(alphabet, k=draw.randint(1, 60)))
        (tmp_path / "a.txt").write_bytes(text.encode())
        (tmp_path / "b.txt").write_bytes(("\ufeff" + text).encode("utf-16-le"))
        assert list(decoding.line_blocks(tmp_path / "a.txt", 5, 9)) is not None
        one, two = ("".join(t for t, _ in decoding.line_blocks(tmp_path / f"{n}.txt", 6, 12)) for n in "ab")
        assert one == two == text
