"""FillMask and its commands: answers equal the model's, and a bad query is one clear line."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlm_onnx import FillMask, QueryError
from mlm_onnx.__main__ import COMMANDS, main
from mlm_onnx.answer.engine import log_softmax, side_by_side, top
from mlm_onnx.answer.pieces import Pieces
from mlm_onnx.cli.answer import comma_separated
from mlm_onnx.cli.show import one_line
from mlm_onnx.convert.pipeline import write_bundle
from mlm_onnx.convert.reference import Reference
from mlm_onnx.convert.request import Request
from support.bundles import KINDS, ONE_SHAPE, ORIGIN, SENTENCE_MODEL, piecewise
from support.models import randomised
from tokenizers import Tokenizer

from jax_mlm.presets import SENTENCE


@pytest.fixture(scope="session")
def words(sentence_bundles: dict[str, Path]) -> Path:
    return sentence_bundles["fp32"]


@pytest.fixture(scope="session")
def fill(words: Path) -> FillMask:
    return FillMask(words, threads=1)


# ---- values -----------------------------------------------------------------------------------------


def test_softmax_and_top_by_hand() -> None:
    logits = np.log(np.array([[1.0, 2.0, 5.0]], np.float32)) + 1000
    np.testing.assert_allclose(np.exp(log_softmax(logits)), [[0.125, 0.25, 0.625]], rtol=1e-4)
    scores = np.array([0.1, 0.5, 0.2, 0.5, 0.0])
    assert top(scores, 1).tolist() == [1]
    assert top(scores, 3).tolist() == [1, 3, 2]
    assert top(scores, 5).tolist() == [1, 3, 2, 0, 4]
    assert top(scores, 9).tolist() == [1, 3, 2, 0, 4]


def test_answers_are_the_models_probabilities(fill: FillMask, words: Path) -> None:
    text = "This model [MASK] a super [MASK]"
    answer = fill(text, top_k=13)
    tokenizer = Tokenizer.from_file(str(words / "tokenizer.json"))
    ids = np.array([tokenizer.encode(text).ids])
    reference = Reference(SENTENCE_MODEL, randomised(SENTENCE_MODEL), SENTENCE_MODEL.vocab_size)
    logits = reference.logits(ids, np.array([[2, 5]]))[0].astype(np.float64)
    expected = np.exp(logits - logits.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    assert answer["text"] == text
    assert [(m["position"], m["start"], m["end"]) for m in answer["masks"]] == [(2, 11, 17), (5, 26, 32)]
    for mask, row in zip(answer["masks"], expected, strict=True):
        got = {c["id"]: c["probability"] for c in mask["candidates"]}
        assert sorted(got) == list(range(3, 16)), "every word once, and no special token"
        np.testing.assert_allclose([got[i] for i in range(3, 16)], row[3:], atol=1e-5)
        assert list(got.values()) == sorted(got.values(), reverse=True)
    first = answer["masks"][1]["candidates"][0]
    assert first["text"] == f"This model [MASK] a super {first['token']}"


def test_punctuation_and_spaces_around_the_mask(fill: FillMask) -> None:
    mask = fill("  This ([MASK]). model")["masks"][0]
    assert (mask["position"], mask["start"], mask["end"]) == (1, 8, 14)
    assert mask["candidates"][0]["text"] == f"  This ({mask['candidates'][0]['token']}). model"


def test_lists_keep_their_order_and_their_answers(fill: FillMask) -> None:
    words = SENTENCE.split()
    texts = [" ".join("[MASK]" if i == j else w for j, w in enumerate(words[:n])) for n in (3, 9, 5, 9) for i in (0, 2)]
    texts.append("[MASK] model [MASK] a super")
    together = fill(texts, top_k=4)
    assert [answer["text"] for answer in together] == texts
    for text, answer in zip(texts, together, strict=True):
        alone = fill(text, top_k=4)
        for one, other in zip(alone["masks"], answer["masks"], strict=True):
            assert [c["id"] for c in one["candidates"]] == [c["id"] for c in other["candidates"]]
            for a, b in zip(one["candidates"], other["candidates"], strict=True):
                assert abs(a["probability"] - b["probability"]) <= 1e-5
    assert fill([]) == []


def test_a_target_says_its_rank_among_all_tokens(fill: FillMask) -> None:
    every = fill("This [MASK] a", top_k=13)["masks"][0]["candidates"]
    for place, candidate in enumerate(every, 1):
        target = fill("This [MASK] a", targets=[candidate["token"]])["masks"][0]["candidates"][0]
        assert target == {**candidate, "rank": place}
    assert "rank" not in every[0]


def test_targets(fill: FillMask) -> None:
    everything = {c["token"]: c["probability"] for c in fill("This [MASK] a", top_k=13)["masks"][0]["candidates"]}
    chosen = fill("This [MASK] a", targets=["words", "model", "words"])["masks"][0]["candidates"]
    assert {c["token"] for c in chosen} == {"words", "model"}
    assert all(c["probability"] == pytest.approx(everything[c["token"]]) for c in chosen)
    assert len(fill("This [MASK] a", targets=["words", "model"], top_k=1)["masks"][0]["candidates"]) == 1


def test_score_hides_each_token_in_turn(fill: FillMask) -> None:
    text = "This model creates a super unheard-of"
    answer = fill.score(text)
    words = text.split()
    assert [t["token"] for t in answer["tokens"]] == [*words[:-1], "[UNK]"], "unknown tokens count"
    assert answer["unknown"] == 1
    for i, token in enumerate(answer["tokens"][:-1]):
        hidden = " ".join("[MASK]" if i == j else w for j, w in enumerate(words))
        found = fill(hidden, targets=[token["token"]])["masks"][0]["candidates"][0]["probability"]
        assert token["logprob"] == pytest.approx(math.log(found), abs=1e-4)
    assert answer["score"] == pytest.approx(sum(t["logprob"] for t in answer["tokens"]))
    assert answer["perplexity"] == pytest.approx(math.exp(-answer["score"] / 6))
    assert fill.score([text, "a super"])[1]["text"] == "a super"


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_fit_into_the_sentence(kind: str) -> None:
    tokenizer = piecewise(kind)
    pieces = Pieces(tokenizer)
    text = "The cat was [MASK], again"
    start = text.index("[MASK]")
    (garden,) = pieces.of("garden")
    assert pieces.shown(garden) == "garden"
    assert pieces.fill(text, start, start + 6, garden) == "The cat was garden, again"
    inside = next(
        id for id in range(5, tokenizer.get_vocab_size()) if not pieces.begins_word(id) and pieces.surface(id) == "s"
    )
    assert pieces.fill("the cat [MASK] here", 8, 14, inside) == "the cats here"
    code = "def f():\n    [MASK] x"
    assert pieces.fill(code, code.index("["), code.index("]") + 1, inside) == "def f():\n    s x"
    assert len(pieces.of("zzxxqq")) > 1 or pieces.of("zzxxqq") == [tokenizer.token_to_id("[UNK]")]


@pytest.mark.parametrize("kind", KINDS)
def test_framed_tokenizers_answer(kind: str, tmp_path: Path) -> None:
    tokenizer = piecewise(kind)
    model = replace(SENTENCE_MODEL, vocab_size=tokenizer.get_vocab_size() + 64)  # rows that no token uses
    write_bundle(tmp_path / "b", model, randomised(model), tokenizer, Request("fp32"), ORIGIN, ONE_SHAPE)
    fill = FillMask(tmp_path / "b")
    text = "The cat [MASK] in the garden."
    mask = fill(text, top_k=30)["masks"][0]
    assert (mask["position"], mask["start"], mask["end"]) == (2, 8, 14)
    assert all(5 <= c["id"] < tokenizer.get_vocab_size() for c in mask["candidates"])
    assert all("[MASK]" not in c["text"] and "[" not in c["token"] for c in mask["candidates"])
    target = fill(text, targets=["garden"])["masks"][0]["candidates"][0]
    assert target["text"] == "The cat garden in the garden."


# ---- bad queries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (("",), "empty"),
        (("  \n",), "empty"),
        (("This model",), r"no mask: write \[MASK\]"),
        (("This <mask> model",), r"contains <mask>, which is not this model's mask\): write \[MASK\]"),
        (("[MASK] [MASK]",), "nothing but"),
        (("a [MASK] " * 1025,), "1025 masks; the limit is 1024"),
        (("a" * 1_000_001,), "1000001 characters"),
        (("a [MASK] \ud800",), "UTF-8"),
        (("a [MASK]", 0), "top_k must be an integer of at least 1"),
        (("a [MASK]", True), "top_k must be an integer of at least 1"),
        (("a [MASK]", 14), "more than the 13"),
        (("a [MASK]", 5, ["cat"]), "'cat' is not one token"),
        (("a [MASK]", 5, ["[PAD]"]), "not one token"),
        (("a [MASK]", 5, []), "targets is empty"),
        (("a [MASK]", 5, 3), "targets must be words, not int"),
        ((["a [MASK]", "a"],), r"text 1 \(from 0\): the text has no mask"),
        (("a [MASK]", 5, [3]), "target must be a str, not int"),
        (("a [MASK]", 5, ["\ud800"]), "UTF-8"),
        (("a [MASK]", 5, [""]), "'' is not one token"),
        ((["a [MASK]", 3],), "must be a str, not int"),
        ((b"a [MASK]",), "must be a str, not int"),
        ((None,), "must be a str or several of them, not NoneType"),
    ],
)
def test_bad_queries_are_one_line(fill: FillMask, query: tuple, said: str) -> None:
    with pytest.raises(QueryError, match=said) as caught:
        fill(*query)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_bad_scores_are_one_line(fill: FillMask) -> None:
    for text, said in (("a [MASK]", "may not contain"), ("", "empty"), ("[PAD]", "nothing to score")):
        with pytest.raises(QueryError, match=said):
            fill.score(text)
        with pytest.raises(QueryError, match=rf"^text 1 \(from 0\): .*{said}"):
            fill.score(["a", text])


# ---- processes and threads --------------------------------------------------------------------------


def test_threads_share_one(words: Path) -> None:
    fill = FillMask(words, threads=2)
    texts = [f"This model [MASK] a {word}" for word in SENTENCE.split()] * 4
    expected = [fill(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fill, texts)) == expected


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_several_texts_are_answered_as_each_alone_whatever_the_threads(
    sentence_bundles: dict[str, Path], dtype: str
) -> None:
    texts = [" ".join(SENTENCE.split()[:n]) + " [MASK]" for n in range(1, 13)] * 3
    alone = [FillMask(sentence_bundles[dtype], threads=1)(text) for text in texts]
    together = FillMask(sentence_bundles[dtype], threads=3)(texts)
    for one, other in zip(alone, together, strict=True):
        a, b = ([c["probability"] for c in answer["masks"][0]["candidates"]] for answer in (one, other))
        assert a == b if dtype == "int8" else a == pytest.approx(b, abs=1e-5)


def test_work_side_by_side_keeps_its_order_and_runs_little_ahead() -> None:
    done: list[int] = []

    def run(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        done.append(item)
        return -item

    found = side_by_side(run, range(40), 3)
    assert next(found) == 0
    time.sleep(0.05)
    assert len(done) <= 2 * 3 + 1, "what nobody has taken yet would pile up"
    assert list(found) == [-item for item in range(1, 40)]
    assert sorted(done) == list(range(40))


def test_work_side_by_side_that_fails_says_so_and_stops() -> None:
    begun: list[int] = []

    def run(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise QueryError("no")
        return item

    with pytest.raises(QueryError, match="no"):
        list(side_by_side(run, range(1000), 2))
    assert len(begun) < 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_answers(words: Path) -> None:
    script = (
        "import os, sys\nfrom mlm_onnx import FillMask\nf = FillMask(sys.argv[1], threads=2)\n"
        "t = 'This [MASK] a'\nexpected = f(t)\nchild = os.fork()\n"
        "if child == 0:\n    os._exit(0 if f(t) == expected else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(words)], check=True, timeout=60)


def test_import_brings_no_training_framework(words: Path) -> None:
    script = (
        "import sys, mlm_onnx\nassert 'onnxruntime' not in sys.modules\n"
        "mlm_onnx.FillMask(sys.argv[1])('This [MASK] a')\n"
        "import mlm_onnx.__main__\n"
        "heavy = {'jax', 'jaxlib', 'flax', 'orbax', 'torch', 'onnx', 'jax_mlm', 'transformers', 'onnx_ir'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- commands ---------------------------------------------------------------------------------------


def test_fill_prints_a_table_or_json(words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fill", str(words), "This [MASK] a", "--top-k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].endswith("%")
    assert main(["fill", str(words), "Thís [MASK] a", "--json", "--targets", "words, model"]) == 0
    printed = capsys.readouterr().out
    answer = json.loads(printed)
    assert "Thís" in printed
    assert set(answer) == {"text", "masks"}
    assert set(answer["masks"][0]) == {"position", "start", "end", "candidates"}
    assert set(answer["masks"][0]["candidates"][0]) == {"token", "id", "probability", "text", "rank"}
    assert len(answer["masks"][0]["candidates"]) == 2


def test_targets_are_a_line_of_csv() -> None:
    for given, words in {
        "a,b": ["a", "b"],
        " a , b,": ["a ", "b"],
        '"1,000",many': ["1,000", "many"],
        'a,"1,000"': ["a", "1,000"],
        '""""': ['"'],
        '"say ""no"", twice"': ['say "no", twice'],
        '5",6"': ['5"', '6"'],
        '" a"': [" a"],
        ",": [],
        "": [],
    }.items():
        assert comma_separated(given) == words


def test_a_line_end_takes_no_line_of_a_table() -> None:
    assert one_line("a\n\tb") == r"a\n\tb"
    assert one_line("می\u200cخواهم 我") == "می\u200cخواهم 我"


def test_score_and_info_print(words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(words), "This model", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"text", "score", "perplexity", "unknown", "tokens"}
    assert main(["score", str(words), "This zzz", "--within-word"]) == 0
    assert ", 1 unknown" in capsys.readouterr().out
    assert main(["score", str(words), "This model"]) == 0
    assert main(["info", str(words)]) == 0
    printed = capsys.readouterr().out
    if Path("/proc/self/status").exists():
        assert re.search(r"^memory +[\d.]+ MB resident", printed, re.MULTILINE)
    assert "fast/fill_mask.onnx: input_ids int64[batch, sequence]" in printed
    assert main(["info", str(words), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["fil"], "did you mean fill?"),
        (["xyzzy"], "choose convert, fill, explain, score, embed, classify, answer, tag, demo, info"),
        (["fill"], "required"),
        (["fill", "BUNDLE"], "give a TEXT, or --file IN --out OUT"),
        (["fill", "BUNDLE", "a [MASK]", "--top_k", "3"], "did you mean --top-k?"),
        (["fill", "BUNDLE", "a [MASK]", "--top-k", "0"], "--top-k 0: expected an integer of at least 1"),
        (["fill", "BUNDLE", "a [MASK]", "--top-k", "x"], "--top-k x: expected an integer of at least 1"),
        (["fill", "BUNDLE", "a [MASK]", "--top-k", "99"], "more than the 13"),
        (["fill", "BUNDLE", "a [MASK]", "--targets", ","], "targets is empty"),
        (["fill", "BUNDLE", "a [MASK]", "--targets", '"1,000",word'], "target '1,000' is not one token"),
        (["fill", "BUNDLE", "a [MASK]", "--targets", '"'], '--targets ": a double quote begins a word'),
        (["fill", "BUNDLE", "a"], "no mask"),
        (["fill", "/nowhere", "a [MASK]"], "/nowhere is not a folder"),
        (["score", "BUNDLE", "a [MASK]"], "may not contain"),
        (["info", "."], "not a bundle"),
        (["convert", "/nowhere", "/tmp/never-written"], "/nowhere"),
        (["convert", "/nowhere", "BUNDLE/config.json"], "not a folder"),
    ],
)
def test_bad_command_lines(words: Path, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.replace("BUNDLE", str(words)) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_two_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.count(f"python -m mlm_onnx {name}") >= 3
    assert main([]) == 0
    assert f"  {name} " in capsys.readouterr().out
