"""Minimal pairs in BLiMP's format: what counts as right, what is counted besides, and which lines are refused."""

import json

import pytest

from jax_mlm import evaluate
from jax_mlm.data.tokenizer import load_tokenizer
from jax_mlm.errors import UserError
from jax_mlm.evals.likelihood import Score, make_scorer
from jax_mlm.evals.pairs import judge, read_pairs
from jax_mlm.report.likelihood import counting
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run

METHODS = ("original", "word-l2r")


def blimp(good, bad, uid, term="agreement", **more):
    """A line as BLiMP's files have them."""
    fields = {"field": "syntax", "linguistics_term": term, "UID": uid, "simple_LM_method": True, "pair_id": "0"}
    return json.dumps({"sentence_good": good, "sentence_bad": bad, **fields, **more})


BIRDS = [f"line {i} says that {i} birds met near the old bridge" for i in range(6)]
PAIRS = {
    "first.jsonl": [blimp(line, line.replace("the old", "old the"), "order") for line in BIRDS],
    "second.jsonl": [
        *(blimp(line.replace("the old", "old the"), line, "disorder", "nonsense") for line in BIRDS),
        blimp(f"{BIRDS[0]} Ω", f"{BIRDS[0]} Δ", "unknown", "nonsense"),
        json.dumps({"sentence_bad": BIRDS[0], "sentence_good": BIRDS[0].replace("birds met", "met birds")}),
    ],
}
"""The second file has the pairs of the first the wrong way round, one whose words are unknown, and one without UID."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for name, lines in PAIRS.items():
        (folder / name).write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    (folder / "README.md").write_text("not pairs")
    return folder


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = evaluate.main([str(a) for a in arguments])
    out = capsys.readouterr()
    return code, out.out, out.err


def figures(capsys, *arguments) -> dict:
    code, out, err = call(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_likelier_sentence_wins_and_ties_are_wrong(run, pairs, capsys, tmp_path):
    found = figures(capsys, run, "--pairs", pairs, "--predictions", tmp_path / "scores.jsonl")
    assert (found["pairs"], found["method"], found["step"]) == (14, "word-l2r", 3)
    assert found["unknown"] == {"pairs": 1, "tokens": 2}
    assert found["accuracy"] == found["methods"]["word-l2r"]["accuracy"]
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    given = [json.loads(line) for name in sorted(PAIRS) for line in PAIRS[name]]
    assert [{key: line[key] for key in row} for line, row in zip(lines, given, strict=True)] == given
    score = make_scorer(load_tokenizer(run / "tokenizer.json"), read_run(run).model, load_params(run)[1], METHODS, 2048)
    for method in METHODS:
        tallies = found["methods"][method]
        right = []
        for line in lines:
            good, bad = score([line["sentence_good"], line["sentence_bad"]])
            mine = line["scores"][method]
            assert (mine["good"], mine["bad"]) == pytest.approx((good.pll[method], bad.pll[method]), abs=1e-4)
            assert mine["right"] == (mine["good"] > mine["bad"])
            right.append(mine["right"])
        assert not right[12], "a tie: both sentences have the same tokens"
        assert lines[12]["scores"][method]["good"] == lines[12]["scores"][method]["bad"]
        assert [right[i] != right[i + 6] for i in range(6)] == [True] * 6, "the same pairs the wrong way round"
        assert tallies["accuracy"] == sum(right) / 14
        uids = {"order": right[:6], "disorder": right[6:12], "unknown": right[12:13], "second": right[13:]}
        assert tallies["UID"] == {
            uid: {
                "pairs": len(each),
                "accuracy": sum(each) / len(each),
                "ties": int(uid == "unknown"),
                "unknown": int(uid == "unknown"),
            }
            for uid, each in sorted(uids.items())
        }
        assert tallies["mean"] == pytest.approx(sum(sum(each) / len(each) for each in uids.values()) / 4)
        assert {term: tally["pairs"] for term, tally in tallies["linguistics_term"].items()} == {
            "agreement": 6, "nonsense": 7,
        }  # fmt: skip
        assert (tallies["ties"], tallies["unknown"]) == (1, 1)


def test_the_figures_do_not_depend_on_the_batch_and_a_method_may_be_chosen(run, pairs, capsys):
    both = figures(capsys, run, "--pairs", pairs / "first.jsonl", pairs / "second.jsonl", "--pll", "both", "--batch", 3)
    assert both == figures(capsys, run, "--pairs", pairs)
    alone = figures(capsys, run, "--pairs", pairs, "--pll", "original")
    assert alone["methods"] == {"original": both["methods"]["original"]}
    assert alone["method"] == "original"


def test_the_table_shows_methods_groups_ties_and_unknown_words(run, pairs, capsys):
    code, out, _ = call(capsys, run, "--pairs", pairs)
    assert code == 0
    assert "14 pairs, 1 of them with unknown tokens (2)" in out
    for shown in (
        "original",
        "word-l2r",
        "mean of 4 by UID",
        "linguistics_term nonsense",
        "UID order",
    ):
        assert shown in out


def test_what_utf8_cannot_hold_is_replaced_in_predictions(run, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(blimp(BIRDS[0], BIRDS[1], "a", pair_id="\ud83d"))
    figures(capsys, run, "--pairs", tmp_path / "a.jsonl", "--predictions", tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["pair_id"] == "?"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"sentence_god": "a", "sentence_bad": "b"}', "line 2: no key 'sentence_good'"),
        ('{"sentence_god": "a", "sentence_bad": "b"}', "did you mean sentence_god?"),
        ('{"sentence_good": "a", "sentence_bda": "b"}', "did you mean sentence_bda?"),
        ('{"sentence_good": "a", "sentence_bad": 3}', "line 2: 'sentence_bad' holds int, not text"),
        ('{"sentence_good": " ", "sentence_bad": "b"}', "line 2: 'sentence_good' is empty"),
        ('{"sentence_good": "a", "sentence_bad": "b", "UID": ["x"]}', "line 2: 'UID' holds list, not text"),
        ('{"sentence_good": "a", ', "line 2: not JSON"),
        ('["a", "b"]', "line 2: list, where an object"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_the_nearest_key(run, capsys, tmp_path, line, said):
    file = tmp_path / "pairs.jsonl"
    file.write_text(f"{PAIRS['first.jsonl'][0]}\n{line}\n", encoding="utf-8")
    code, out, err = call(capsys, run, "--pairs", file)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {file}")
    assert said in err


def test_progress_is_drawn_for_whoever_is_watching_and_changes_nothing(monkeypatch, capsys):
    assert list(counting(iter("abc"), 3, "pairs")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("jax_mlm.report.likelihood.at_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(counting(iter("abc"), 3, "pairs")) == ["a", "b", "c"]
    assert "pairs" in capsys.readouterr().err


def test_a_sentence_without_any_token_is_not_the_likelier_one(pairs):
    some, none = (Score(dict.fromkeys(METHODS, pll), tokens, 0) for pll, tokens in ((-3.0, 2), (0.0, 0)))
    read = read_pairs([str(pairs / "first.jsonl")])[:1]
    with pytest.raises(UserError, match=r"first\.jsonl, line 1: .* makes no token of 'sentence_bad'"):
        list(judge(lambda texts: [some, none], read, 100))


def test_what_cannot_be_judged_is_one_line(run, pairs, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n")
    text = run / "text.txt"
    for arguments, said in [
        (["--pairs", tmp_path / "none.jsonl"], "none.jsonl: no such file"),
        (["--pairs", tmp_path / "empty"], "no *.jsonl in this folder"),
        (["--pairs", tmp_path / "empty.jsonl"], "there is no pair in it"),
        (["--pairs", text], "give it such a suffix"),
        (["--pairs", pairs, "--data", text], "give either --data or --pairs"),
        (["--pairs", pairs, "--all-mask"], "--all-mask does not go with"),
        (["--pairs", pairs, "--predictions", tmp_path], "is a folder: give a file"),
        (["--data", text, "--pll", "orignal"], "did you mean original?"),
    ]:
        code, out, err = call(capsys, run, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert err.startswith("error:")
        assert said in err


@pytest.mark.parametrize(
    ("argv", "pll"),
    [
        (["run", "--data", "a", "--pll"], "original"),
        (["run", "--pll", "--data", "a"], "original"),
        (["--pll", "run", "--data", "a"], "original"),
        (["run", "--data", "a", "--pll", "word-l2r"], "word-l2r"),
        (["run", "--pll=both", "--data", "a"], "both"),
        (["run", "--data", "a"], ""),
    ],
)
def test_pll_may_stand_alone_as_it_did_before_it_had_values(argv, pll):
    config = evaluate.COMMAND.read(argv)
    assert (config.pll, str(config.run), config.data) == (pll, "run", ("a",))


# ---- the scores of a text -------------------------------------------------------------------------


def test_a_text_has_the_figures_of_the_whole_and_a_long_paragraph_is_scored_too(run, capsys, tmp_path):
    text, scores = tmp_path / "text.txt", tmp_path / "made" / "scores.jsonl"
    text.write_text("\n".join([*BIRDS, "bird " * 300, f"{BIRDS[0]} Ω met Δ"]), encoding="utf-8")
    whole = figures(capsys, run, "--data", text, "--pll", "both", "--predictions", scores)
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [line["text"] for line in lines] == [line.strip() for line in text.read_text().splitlines()]
    assert [line["unknown"] for line in lines] == [0] * 7 + [2]
    assert lines[6]["words"] == 300 < lines[6]["tokens"]
    for name in ("tokens", "unknown", "words", "bytes"):
        assert whole[name] == sum(line[name] for line in lines)
    for method, name in (("original", "pll"), ("word-l2r", "pll_word_l2r")):
        assert whole["methods"][method]["pll"] == pytest.approx(sum(line[name] for line in lines))
    code, out, err = call(capsys, run, "--data", text, "--pll", "both", "--json")
    assert (code, [json.loads(line) for line in out.splitlines()]) == (0, lines)
    assert "bits per byte" in err, "beside the documents"
    code, out, err = call(capsys, run, "--data", text, "--pll")
    assert (code, err, len(out.splitlines())) == (0, "", 8 + 2)
    assert "pseudo-perplexity per word" in out.splitlines()[-1]
