"""Questions, from the command line to the answers: what is learned, found in the text, reported and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlm_onnx.__main__ import main as onnx
from mlm_onnx.bundle.read import read_manifest
from support.models import assert_trees_equal
from support.paths import ROOT
from support.runs import save_run, stopped_after

from jax_mlm import evaluate, load
from jax_mlm.data.labels import Example
from jax_mlm.data.tokenizer import load_tokenizer
from jax_mlm.evals.answers import answers, predicted
from jax_mlm.finetune import finetune, main
from jax_mlm.hf.__main__ import main as hf
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run, read_task
from jax_mlm.tasks.questions import agreement
from jax_mlm.train.finetune_options import FinetuneConfig

INIT = ROOT / "tests" / "golden" / "run"
PLACES = ("market", "barn", "bridge")
SETTINGS: dict[str, Any] = {"lr": 2e-2, "batch": 8, "length": 64, "epochs": 4.0}


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """Return questions about a text, in the form of SQuAD: who does something, and where, if the text tells it."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        person, verb = (
            rng.choice(["my sister", "the baker", "a young sailor"]),
            rng.choice(["sells", "paints", "finds"]),
        )
        place = str(rng.choice([*PLACES, ""]))
        thing, where = rng.choice(["jar", "basket", "door"]), rng.choice(["in", "behind"])
        context = f"{person} {verb} a {thing}" + (f" {where} the {place}." if place else ".")
        question, answer = ("where?", place) if number % 2 else ("who?", str(person))
        found = [{"text": answer, "answer_start": context.index(answer)}] if answer else []
        made.append({"id": f"q{number}", "question": question, "context": context, "answers": found})
    return made


def squad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    paragraphs = [
        {"context": row["context"], "qas": [{name: row[name] for name in ("id", "question", "answers")}]}
        for row in rows
    ]
    return {"version": "v2.0", "data": [{"title": "made up", "paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions to learn and to report on, and the golden run without its second layer."""
    path = tmp_path_factory.mktemp("answers")
    params = load_params(INIT, "best")[1]
    del params["layer_1"]
    save_run(path / "init", replace(read_run(INIT).model, layers=1), params, load_tokenizer(INIT / "tokenizer.json"))
    (path / "init" / "run.json").write_text((INIT / "run.json").read_text().replace('"layers": 2', '"layers": 1'))
    for name, count, seed in (("train", 320, 0), ("dev", 48, 1)):
        (path / f"{name}.json").write_text(json.dumps(squad(questions(count, seed))))
    return path


def config(folder: Path, **given: Any) -> FinetuneConfig:
    files = {"data": str(folder / "train.json"), "valid": str(folder / "dev.json")}
    return FinetuneConfig(**{"init": str(folder / "init"), "task": "answer", **files, **SETTINGS, **given})


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A run that answers questions, and knows that some have no answer."""
    return finetune(config(folder, out=str(folder / "run")))[0]


def test_answers_are_learned_and_what_measures_them_is_stored(trained: Path) -> None:
    scores = json.loads((trained / "scores.json").read_text())
    assert scores["f1"] > 0.8
    assert {"exact", "f1_with_answer", "f1_without_answer", "loss"} <= scores.keys()
    assert scores["examples"] == 48
    task = read_task(trained)
    assert task is not None
    assert (task.kind, task.pair, task.no_answer, task.labels, task.outputs) == ("answer", True, True, (), 2)
    assert 2 <= task.max_answer <= 6
    page = (trained / "report.html").read_text()
    assert all(word in page for word in ("Scores", "best f1", "exact"))


def test_evaluate_measures_what_training_reported_and_answers_are_in_the_text(
    trained: Path, folder: Path, capsys: Any
) -> None:
    out = folder / "answers.jsonl"
    assert evaluate.main([str(trained), "--data", str(folder / "dev.json"), "--predictions", str(out), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    reported = json.loads((trained / "scores.json").read_text())
    assert {name: reported[name] for name in measured} == measured
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{k: row[k] for k in ("id", "question", "context", "answers")} for row in rows] == questions(48, 1)
    nothing = [row for row in rows if row["prediction"] is None]
    assert 0 < len(nothing) < 48
    assert all((row["start"], row["end"]) == (None, None) for row in nothing)
    assert all(r["context"][r["start"] : r["end"]] == r["prediction"] for r in rows if r["prediction"] is not None)
    assert all(0 < row["probability"] <= 1 for row in rows)
    each = [agreement([a["text"] for a in row["answers"]], row["prediction"] or "") for row in rows]
    assert np.mean([one.exact for one in each]) == pytest.approx(measured["exact"])


def test_questions_without_known_answers_get_answers_but_no_scores(trained: Path, folder: Path, capsys: Any) -> None:
    rows = [{"question": "where?", "context": "🙂 my sister sells a jar in the barn.", "start": 7},
            {"question": "where?", "context": ""}]  # fmt: skip
    (folder / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate.main([str(trained), "--data", str(folder / "plain.jsonl")]) == 2
    assert "has no labels: give --predictions" in capsys.readouterr().err
    line = [str(trained), "--data", str(folder / "plain.jsonl"), "--predictions", str(folder / "out.jsonl")]
    assert evaluate.main(line) == 0
    first, second = map(json.loads, (folder / "out.jsonl").read_text().splitlines())
    assert first["start"] == 7
    assert first["prediction"] == "barn" == first["context"][first["predicted_start"] : first["end"]]
    assert second["prediction"] is None


def test_what_shares_a_row_changes_no_answer_of_one_window_or_several(trained: Path) -> None:
    task, run = read_task(trained), read_run(trained)
    assert task is not None
    tokenizer, (_, params) = load_tokenizer(trained / "tokenizer.json"), load_params(trained, "best")
    texts = [row["context"] for row in questions(12, 5)]
    examples = [Example(f"line {i}", text, "where?") for i, text in enumerate([*texts, " ".join(texts), ""])]
    laid, together = predicted(run, task, tokenizer, params, examples)
    assert laid.asked is not None
    first = laid.asked.windows.first
    assert (np.bincount(laid.asked.owners) > 1).tolist() == [*[False] * 12, True, False]
    for number in (7, 12):
        alone, logits = predicted(run, task, tokenizer, params, examples[number : number + 1])
        windows = np.flatnonzero(laid.asked.owners == number)
        np.testing.assert_allclose(together[first[windows[0]] : first[windows[-1] + 1]], logits, atol=1e-5)
        (own,) = answers(task, alone, logits)
        both = list(answers(task, laid, together))[number]
        assert (both["prediction"], both["start"]) == (own["prediction"], own["start"])


def test_runs_go_to_hugging_face_and_come_back(trained: Path, folder: Path, capsys: Any) -> None:
    there, back = folder / "hf", folder / "back"
    assert hf(["export", str(trained), str(there)]) == 0
    assert json.loads((there / "config.json").read_text())["architectures"] == ["ModernBertForQuestionAnswering"]
    card = (there / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    assert "AutoModelForQuestionAnswering" in card
    assert hf(["import", str(there), str(back)]) == 0
    assert_trees_equal(dict(load(back).params), dict(load(trained).params))
    capsys.readouterr()
    assert evaluate.main([str(back), "--data", str(folder / "dev.json"), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["exact"] == json.loads((trained / "scores.json").read_text())["exact"]


@pytest.mark.slow
def test_stopped_and_resumed_is_bitwise_the_same(trained: Path, folder: Path) -> None:
    out = str(folder / "resumed")
    with pytest.raises(KeyboardInterrupt, match=r"python -m jax_mlm.finetune --resume --out"):
        finetune(config(folder, out=out), stopped_after(7))
    again, _ = finetune(replace(config(folder, out=out), resume=True))
    assert_trees_equal(load_params(again, "latest"), load_params(trained, "latest"))
    assert json.loads((again / "scores.json").read_text()) == json.loads((trained / "scores.json").read_text())


@pytest.mark.slow
def test_seeds_frozen_layers_and_a_file_that_chooses_work_as_for_other_tasks(folder: Path) -> None:
    given = config(folder, init=str(INIT), epochs=1.0, seeds=2, freeze=1, metric="exact", out=str(folder / "seeds"))
    run, scores = finetune(replace(given, test=given.valid, patience=3))
    assert len(scores["seeds"]) == 2
    assert scores["metric"] == "exact"
    before, after = load_params(INIT, "best")[1], load_params(run, "latest")[1]
    assert_trees_equal(after["layer_0"], before["layer_0"])
    assert not np.array_equal(after["layer_1"]["mlp"]["up"]["kernel"], before["layer_1"]["mlp"]["up"]["kernel"])


@pytest.mark.slow
def test_transformers_gives_our_logits_of_a_question_and_its_context(trained: Path, folder: Path) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch: pip install 'jax-mlm[reference]'")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    there = folder / "hf-torch"
    assert hf(["export", str(trained), str(there)]) == 0
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(there)
    read = transformers.AutoTokenizer.from_pretrained(there)
    task = read_task(trained)
    assert task is not None
    tokenizer, (_, params) = load_tokenizer(trained / "tokenizer.json"), load_params(trained, "best")
    for row in questions(4, 7):
        example = Example("f", row["context"], row["question"])
        _, ours = predicted(read_run(trained), task, tokenizer, params, [example])
        with torch.no_grad():
            found = theirs(**read(row["question"], row["context"], return_tensors="pt", return_token_type_ids=False))
        np.testing.assert_allclose(ours[:, 0], found.start_logits[0].numpy(), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(ours[:, 1], found.end_logits[0].numpy(), rtol=1e-5, atol=1e-4)


# ---- what is refused, or said --------------------------------------------------------------------


def refusal(capsys: Any) -> str:
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    return line


WRONG: dict[str, tuple[list[str], str]] = {
    "labels": (["--labels", "a,b"], "leave out --labels"),
    "weights": (["--class-weights", "balanced"], "leave out --labels, --problem, --class-weights"),
    "a metric": (["--metric", "accuracy"], "--metric accuracy: choose"),
    "an answer elsewhere": (["--data", "elsewhere.json"], "question q0: at answer_start 3 the context has"),
    "an answer elsewhere to report on": (["--valid", "elsewhere.json"], "question q0: at answer_start 3"),
    "no answers": (["--data", "none.json"], "no question has an answer: there is nothing to find"),
    "too much overlap": (["--overlap", "40"], "--overlap 40 must be less than half"),
    "one context": (["--data", "one.json"], "all texts are equal"),
    "a taken directory": (["--out", "."], "exists already"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_costs_one_line_and_nothing_is_written(
    name: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    row = {"id": "q0", "question": "where?", "context": "in the barn", "answers": [{"text": "barn", "answer_start": 3}]}
    right = {**row, "answers": [{"text": "barn", "answer_start": 7}]}
    none = [{**row, "answers": []}, {**row, "context": "in the market", "answers": []}]
    for file, rows in (("elsewhere", [row]), ("none", none), ("one", [right, right])):
        (folder / f"{file}.json").write_text(json.dumps(squad(rows)))
    given, message = WRONG[name]
    usual = ["--init", str(INIT), "--task", "answer", "--data", "train.json", "--valid", "dev.json", "--out", "new"]
    assert main([*usual, *given]) == 2
    assert message in refusal(capsys)
    assert not (folder / "new").exists()


def test_a_bundle_answers_a_file_as_evaluate_does(trained: Path, folder: Path) -> None:
    asked, found, out = folder / "asked.jsonl", folder / "asked-found.jsonl", folder / "asked-out.jsonl"
    rows = [{name: row[name] for name in ("question", "context")} for row in questions(24, 5)]
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate.main([str(trained), "--data", str(asked), "--predictions", str(found)]) == 0
    bundle = str(folder / "bundle")
    assert onnx(["convert", str(trained), bundle, "--calibrate", str(folder / "dev.json"), "--dtype", "int8"]) == 0
    calibration = read_manifest(folder / "bundle")["parity"]["calibration"]
    assert (calibration["metric"], calibration["as_jax"]["fp32"]) == ("f1", 1)
    assert calibration["drop"] <= 0.005
    assert onnx(["convert", str(trained), bundle, "--dtype", "fp32"]) == 0
    assert onnx(["answer", bundle, "--file", str(asked), "--out", str(out)]) == 0
    for ours, theirs in zip(map(json.loads, out.open()), map(json.loads, found.open()), strict=True):
        assert (ours["answer"], ours["start"], ours["end"]) == (theirs["prediction"], theirs["start"], theirs["end"])


def test_other_commands_name_what_fits(trained: Path, folder: Path, capsys: Any) -> None:
    assert evaluate.main([str(trained), "--data", str(folder / "dev.json"), "--pll"]) == 2
    assert "was fine-tuned to answer" in refusal(capsys)


def test_runs_of_other_tasks_from_before_are_read() -> None:
    from jax_mlm.config import TaskConfig, from_json

    before = {"kind": "tag", "labels": ["O", "B-x"], "problem": "single", "pair": False, "pooling": "cls", "overlap": 3,
              "metric": "f1", "columns": ["", "", ""]}  # fmt: skip
    assert from_json(TaskConfig, before) == TaskConfig("tag", ("O", "B-x"), overlap=3, metric="f1")
