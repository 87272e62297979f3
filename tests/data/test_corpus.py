"""Sources give the same documents however they are stored; token files do not depend on workers, kills or places."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.rows import prepared
from tokenizers import Tokenizer

from jax_mlm.config import DataConfig
from jax_mlm.data import encoding, sources, token_files
from jax_mlm.data import prepare as corpus
from jax_mlm.data.sources import documents, expand
from jax_mlm.data.token_files import TokenFiles
from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.errors import UserError

WORDS = ["river", "stone", "naïve", "under_score", "don't", "42", "re-enter", "the", "of", "x😀", "日本", "e\u0301te"]


def paragraphs(count: int = 60, seed: int = 0) -> list[str]:
    draw = random.Random(seed)

    def line() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 30)))

    return ["\n".join(line() for _ in range(draw.choice([1, 2, 8]))) for _ in range(count)]


def squeezed(text: str) -> str:
    return "".join(text.split())


def joined(path: Path, document: str, field: str = "text") -> list[str]:
    """Documents with their pieces put together again."""
    out: list[str] = []
    for block in sources.blocks(path, document, field):
        assert max(map(len, block.texts)) <= sources.PIECE
        for text, starts in zip(block.texts, block.starts, strict=True):
            out[len(out) if starts else len(out) - 1 :] = [text if starts else out[-1] + text]
    return out


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([*paragraphs(200), "abcdefghijklmnopqrstuvwxyz " * 3], "wordpiece", 128)


@pytest.fixture
def small_work(monkeypatch) -> None:
    """Blocks, pieces and chunks so small that a few kilobytes make many."""
    monkeypatch.setattr(sources, "BLOCK", 700)
    monkeypatch.setattr(sources, "LONGEST_LINE", 1500)
    monkeypatch.setattr(sources, "PIECE", 400)
    monkeypatch.setattr(corpus, "CHUNK", 1000)
    monkeypatch.setattr(token_files, "SAVE_EVERY", 2)


def same(a: TokenFiles, b: TokenFiles) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "word_bits", "documents"))


# Sources


def test_documents_are_the_same_in_every_format(tmp_path, small_work) -> None:
    zstandard = pytest.importorskip("zstandard")
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    texts = paragraphs()
    texts[7] = "\n".join(texts)  # much longer than a block
    texts[9] = " ".join(["word"] * 2000)  # one line longer than any block
    texts[11] = "日" * 3000  # no place to cut at
    data = ("\n \n\n".join(texts) + "\n").encode()
    packers = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}
    expected = {
        "blank": texts,
        "line": [line for text in texts for line in text.split("\n")],
        "file": ["\n".join(texts)],
    }
    for suffix, pack in packers.items():
        path = tmp_path / f"text.txt{suffix}"
        path.write_bytes(pack(data))
        for document, documents_ in expected.items():
            assert list(map(squeezed, joined(path, document))) == list(map(squeezed, documents_))
    records = [{"id": i, "text": text} for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n\n")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    (tmp_path / "c.json").write_text(json.dumps(records, indent=1))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "d.parquet")
    for path in sorted(tmp_path.glob("?.*")):
        assert joined(path, "line") == texts


def test_line_ends_and_marks_of_other_systems(tmp_path) -> None:
    path = tmp_path / "dos.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n  \r\nthree\x0bstill\r\n")
    assert joined(path, "line") == ["one", "two", "three\x0bstill"]
    assert joined(path, "blank") == ["one\ntwo", "three\x0bstill"]
    (tmp_path / "half.jsonl").write_text('{"text": "a \\ud83d b"}\n')
    assert joined(tmp_path / "half.jsonl", "line") == ["a ? b"]


def test_expand_finds_each_file_once_in_order(tmp_path, monkeypatch) -> None:
    for name in ("b.txt", "a.txt.gz", "sub/c.jsonl", "sub/.hidden/d.txt", "e.bin", "empty.txt", "sub/f.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else "x")
    found = expand([str(tmp_path), str(tmp_path / "*.txt"), str(tmp_path / "e.bin"), str(tmp_path / "**/*.jsonl")])
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["a.txt.gz", "b.txt", "e.bin", "sub/c.jsonl", "sub/f.parquet"]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("none.txt", "no such"), ("*.md", "no such"), ("empty.txt", "empty"), ("folder", "no text"), ("e*", "all empty")],
)
def test_expand_names_the_option_and_what_is_missing(tmp_path, pattern: str, reason: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=reason) as error:
        expand([str(tmp_path / pattern)], "--valid")
    assert f"--valid {tmp_path / pattern}" in str(error.value)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_encoding_names_file_and_byte(tmp_path, small_work, suffix: str) -> None:
    good = ("naïve " * 500 + "\n").encode() * 3
    path = tmp_path / f"latin.txt{suffix}"
    path.write_bytes((gzip.compress if suffix else bytes)(good + b"caf\xe9 au lait\n"))
    with pytest.raises(UserError, match=f"byte {len(good) + 3} .*0xe9") as error:
        list(documents([path], "line", "text"))
    assert str(path) in str(error.value)


BAD_FILES = {
    "field.jsonl": ('{"text": "a"}\n\n{"body": "b", "n": 1}\n', "line 3: no field 'text' .*body, n.*--text-field"),
    "number.jsonl": ('{"text": 5}\n', "line 1: the field 'text' holds int.*--text-field"),
    "list.jsonl": ('5\n{"text": "a"}\n', "line 1: a record must be an object"),
    "broken.jsonl": ('{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    "broken.json": ('[{"text": "a"}, {"text', "element 1: not JSON"),
    "field.json": ('[{"text": "a"}, {"body": ""}]', "element 1: no field 'text'"),
    "torn.txt.gz": (gzip.compress(b"some text " * 500)[:-20], "damaged or incomplete"),
    "torn.txt.xz": (lzma.compress(os.urandom(4000))[:-200], "damaged or incomplete"),
    "none.txt.gz": (b"this is no gzip", "damaged or incomplete"),
    "none.parquet": (b"this is no parquet", "not a readable Parquet"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(tmp_path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    content, reason = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=reason) as error:
        list(documents([path], "line", "text"))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_parquet_columns_are_named(tmp_path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), path)
    with pytest.raises(UserError, match=r"no column 'text' \(it has: body, n\).*--text-field"):
        list(documents([path], "line", "text"))
    with pytest.raises(UserError, match="'n' holds int64, not text"):
        list(documents([path], "line", "n"))


# Word starts


def starts_in_text(tokenizer: Tokenizer, text: str) -> set[int]:
    """Characters at which words begin, by the tokens' word starts."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    begins = encoding.encode(tokenizer, [text]).begins
    at = (start for (start, _), first in zip(encoded.offsets, begins, strict=True) if first)
    return {i + (text[i] == " ") for i in at}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_word_starts_agree_for_every_tokenizer(kind: str) -> None:
    text = "The old river_bed ran under 42 stones , and nobody crossed it ; a (small) boat waited ."
    draw = random.Random(0)
    made = ("".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(2, 6))) for _ in range(4000))
    tokenizer = train_tokenizer([text, " ".join(made)], kind, 320)
    expected = {
        0,
        *(i for i in range(1, len(text)) if text[i] != " " and not (text[i] + text[i - 1]).replace("_", "a").isalnum()),
    }
    assert starts_in_text(tokenizer, text) == expected
    assert len(tokenizer.encode(text)) > len(expected) + 2, "some words must be split, or nothing is tested"


def test_word_starts_by_hand() -> None:
    def begins(text: str, *offsets: tuple[int, int]) -> list[int]:
        return encoding.word_starts([text], np.array([len(offsets)]), np.array(offsets)).astype(int).tolist()

    assert begins("running far", (0, 4), (4, 7), (8, 11)) == [1, 0, 1]
    assert begins("don't", (0, 3), (3, 4), (4, 5)) == [1, 1, 1]
    assert begins("a😀", (0, 1), (1, 2), (1, 2), (1, 2)) == [1, 1, 0, 0]  # bytes of one character
    assert begins("a bc", (0, 1), (1, 2), (2, 4)) == [1, 1, 0]  # a lone space goes with what follows
    assert begins("日本語", (0, 1), (1, 2), (2, 3)) == [1, 1, 1]  # no spaces: no words
    assert begins("e\u0301t", (0, 1), (1, 2), (2, 3)) == [1, 0, 0]  # a combining mark
    two = encoding.word_starts(["ab", "cd"], np.array([2, 2]), np.array([(0, 1), (1, 2), (0, 1), (1, 2)]))
    assert two.tolist() == [True, False, True, False]


# Token files


def test_token_files_hold_each_document(tmp_path, tokenizer, small_work) -> None:
    texts = paragraphs()
    texts[5] = "\n".join(texts)
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(texts))
    files = prepared([path], tokenizer, DataConfig(document="blank"), tmp_path)
    assert len(files.documents) == len(texts) + 1
    for text, low, high in zip(texts, files.documents, files.documents[1:], strict=False):
        encoded = encoding.encode(tokenizer, [text])
        assert files.tokens[low:high].tolist() == encoded.tokens.tolist()
        assert files.begins_word(np.arange(low, high)).tolist() == encoded.begins.tolist()


@pytest.mark.parametrize("document", ["line", "blank", "file"])
@pytest.mark.parametrize("killed_after", [1, 2, 5, 6])
def test_a_killed_preparation_goes_on_and_gives_the_same(
    tmp_path, tokenizer, small_work, monkeypatch, killed_after: int, document: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(paragraphs()))
    cfg = DataConfig(document=document)
    whole = prepared([path], tokenizer, cfg, tmp_path / "whole")
    encoded: list[int] = []
    real = corpus.encode_in_order

    def counted(*arguments):
        for item in real(*arguments):
            encoded.append(1)
            yield item

    monkeypatch.setattr(corpus, "encode_in_order", counted)
    prepared([path], tokenizer, cfg, tmp_path / "counting")
    chunks = len(encoded)
    assert chunks > 8

    def killed(self, *arguments) -> None:
        if self.chunks == killed_after:
            self.files[token_files.TOKENS].write(b"half a chunk")
            raise KeyboardInterrupt
        append(self, *arguments)

    append = token_files.Writer.append
    monkeypatch.setattr(token_files.Writer, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        prepared([path], tokenizer, cfg, tmp_path / "killed")
    monkeypatch.setattr(token_files.Writer, "append", append)
    encoded.clear()
    assert same(prepared([path], tokenizer, cfg, tmp_path / "killed"), whole)
    assert len(encoded) == chunks - killed_after // 2 * 2  # from the last place saved


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(tmp_path, tokenizer, small_work, monkeypatch, workers: int) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(paragraphs()))
    here = prepared([path], tokenizer, DataConfig(), tmp_path / "here")
    monkeypatch.setattr(corpus, "SMALL", 0)
    assert same(prepared([path], tokenizer, DataConfig(workers=workers), tmp_path / "there"), here)


def test_errors_in_text_reach_the_caller_from_behind_workers(tmp_path, tokenizer, small_work, monkeypatch) -> None:
    monkeypatch.setattr(corpus, "SMALL", 0)
    path = tmp_path / "a.txt"
    path.write_bytes("\n".join(paragraphs()).encode() + b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        prepared([path], tokenizer, DataConfig(workers=2), tmp_path)
    assert not list((tmp_path / "tokens").glob("*.partial"))


def test_a_dead_worker_is_reported(tokenizer) -> None:
    worker = encoding.Worker(tokenizer.to_str())
    assert len(worker(["river stone"]).tokens) >= 2
    worker.process.kill()
    worker.process.wait()
    with pytest.raises(MemoryError, match="ended early"):
        worker(["river stone"])
    worker.stop()


def test_the_cache_is_keyed_by_content(tmp_path, tokenizer, monkeypatch) -> None:
    first, moved = tmp_path / "a.txt", tmp_path / "elsewhere" / "b.txt"
    moved.parent.mkdir()
    first.write_text("river stone\nthe river")
    moved.write_text("river stone\nthe river")
    made = prepared([first], tokenizer, DataConfig(), tmp_path / "cache")
    lines = prepared([first], tokenizer, DataConfig(document="file"), tmp_path / "cache")
    assert lines.fingerprint != made.fingerprint
    assert len(lines.documents) == 2
    monkeypatch.setattr(corpus, "_write_tokens", None)  # nothing may be tokenised again
    again = prepared([moved], tokenizer, DataConfig(length=512, workers=7), tmp_path / "cache")
    assert again.fingerprint == made.fingerprint
    assert same(again, made)
    first.write_text("river stone\nthe stone")
    with pytest.raises(TypeError):
        prepared([first], tokenizer, DataConfig(), tmp_path / "cache")


@pytest.mark.parametrize("name", [token_files.TOKENS, token_files.WORDS, token_files.DOCUMENTS, token_files.INDEX])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_corrupt_cache_is_rebuilt(tmp_path, tokenizer, name: str, damage: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(paragraphs()))
    made = prepared([path], tokenizer, DataConfig(), tmp_path / "cache")
    kept = TokenFiles(*(np.array(getattr(made, field)) for field in ("tokens", "word_bits", "documents")), "")
    [file] = (tmp_path / "cache" / "tokens").glob(f"*/{name}")
    if damage == "cut":
        os.truncate(file, file.stat().st_size - 1)
    else:
        file.unlink()
    assert same(prepared([path], tokenizer, DataConfig(), tmp_path / "cache"), kept)
    assert {entry.suffix for entry in (tmp_path / "cache" / "tokens").iterdir()} == {""}


def test_two_at_once_make_it_once(tmp_path, tokenizer, small_work, monkeypatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(paragraphs()))
    made: list[int] = []
    write = corpus._write_tokens

    def slowly(*arguments) -> None:
        made.append(1)
        time.sleep(0.3)
        write(*arguments)

    monkeypatch.setattr(corpus, "_write_tokens", slowly)
    results: list[TokenFiles] = []
    threads = [
        threading.Thread(target=lambda: results.append(prepared([path], tokenizer, DataConfig(), tmp_path / "c")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(results) == 3
    assert same(results[0], results[2])


def test_text_of_nothing_but_space_is_refused(tmp_path, tokenizer) -> None:
    path = tmp_path / "blank.txt"
    path.write_text(" \n\n \t\n")
    with pytest.raises(UserError, match=r"blank.txt: no text"):
        prepared([path], tokenizer, DataConfig(), tmp_path)


def test_progress_reaches_the_end(tmp_path, tokenizer, small_work) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.txt.gz"]
    paths[0].write_text("\n".join(paragraphs()))
    paths[1].write_bytes(gzip.compress("\n".join(paragraphs(seed=1)).encode()))
    seen: list[tuple[int, int]] = []
    prepared(paths, tokenizer, DataConfig(), tmp_path, lambda done, total: seen.append((done, total)))
    total = sum(path.stat().st_size for path in paths)
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


@pytest.mark.timeout(1800)
@pytest.mark.campaign
@pytest.mark.parametrize(("copies", "most"), [(10, 0.8e9), (100, 2e9)], ids=["100MB", "1GB"])
def test_memory_does_not_grow_with_the_text(copies: int, most: float, tmp_path, shared_data) -> None:
    """Peak resident memory of the process and its workers together, while text is tokenised."""
    text = (shared_data / "wikitext-2/wiki.train.tokens").read_text()
    path = tmp_path / "big.txt"
    with path.open("w") as file:
        for i in range(copies):
            file.write(text.replace("the", f"the{i}"))
    assert path.stat().st_size > copies * 1e7
    tokenizer = tmp_path / "tokenizer.json"
    train_tokenizer(text.split("\n"), "wordpiece", 8192).save(str(tokenizer))
    script = """
        import sys, time, json
        from pathlib import Path
        from jax_mlm.config import DataConfig
        from jax_mlm.data.prepare import prepare
        from jax_mlm.data.tokenizer import load_tokenizer, vocabulary_of
        began = time.perf_counter()
        tokenizer = load_tokenizer(sys.argv[2])
        cfg, cache = DataConfig(document=sys.argv[4]), Path(sys.argv[3])
        files = prepare([Path(sys.argv[1])], tokenizer, vocabulary_of(tokenizer), cfg, cache)
        print(json.dumps([time.perf_counter() - began, len(files.tokens), len(files.documents)]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), path, tokenizer, tmp_path / "cache", "line"]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.2)
    assert process.stdout is not None
    seconds, tokens, count = json.loads(process.stdout.read())
    rate = path.stat().st_size / 1e6 / seconds
    print(f"{rate:.1f} MB/s, {tokens:,} tokens, {count - 1:,} documents, {peak / 1e6:.0f} MB at the peak")
    assert peak < most


def resident(pid: int) -> int:
    """Bytes of memory of a process and its children, pages they share counted more than once."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if pid in (int(facts["Pid"]), int(facts["PPid"])):
                total += int(facts.get("VmRSS", "0 kB").split()[0]) * 1024
    return total
