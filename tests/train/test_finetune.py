"""Fine-tuning, from the command line to the scores: what is learned, kept, resumed, reported and refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from mlm_onnx.__main__ import main as onnx
from mlm_onnx.bundle import BundleError
from mlm_onnx.bundle.read import read_manifest
from mlm_onnx.convert.asked import Tuned, labelled_examples
from support.eight import on_eight_devices
from support.models import assert_trees_equal
from support.paths import ROOT
from support.runs import save_run, stopped_after

from jax_mlm import evaluate, load
from jax_mlm.config import DistilConfig, TaskConfig
from jax_mlm.data.examples import split_by_text
from jax_mlm.data.labels import Example, Span
from jax_mlm.data.tokenizer import load_tokenizer
from jax_mlm.errors import UserError
from jax_mlm.evals import files
from jax_mlm.evals.answers import predicted
from jax_mlm.finetune import COMMAND, finetune, main
from jax_mlm.hf.__main__ import main as hf
from jax_mlm.model.ops.kernels import Kernels
from jax_mlm.model.params import leaves
from jax_mlm.parallel import compile as compiling
from jax_mlm.parallel.mesh import make_mesh
from jax_mlm.report.scores import read_scores
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run, read_run_file, read_task
from jax_mlm.run.log import read_metrics
from jax_mlm.tasks.classify import class_weights, label_metrics
from jax_mlm.train import finetuning, pretrained, setup
from jax_mlm.train.__main__ import main as train
from jax_mlm.train.finetune_options import FinetuneConfig
from jax_mlm.train.finetuning import plan
from jax_mlm.train.pace import Pace
from jax_mlm.train.pretrained import shrunk

INIT = ROOT / "tests" / "golden" / "run"
FOODS, PLACES = ("bread", "jar"), ("market", "barn", "bridge")
SETTINGS = {"lr": 3e-3, "batch": 8, "length": 64}


def texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    people = ("my sister", "the baker", "a young sailor")
    verbs = ("sells", "paints", "finds")
    return [
        f"{rng.choice(people)} {rng.choice(verbs)} a {rng.choice([*FOODS, 'basket'])} {rng.choice(['in', 'behind'])} "
        f"the {rng.choice(PLACES)}."
        for _ in range(count)
    ]


def label_of(text: str) -> str:
    return next((food for food in FOODS if food in text), "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples to learn and to report on, for both tasks, and the golden run without its second layer."""
    path = tmp_path_factory.mktemp("finetune")
    params = load_params(INIT, "best")[1]
    del params["layer_1"]
    save_run(path / "init", replace(read_run(INIT).model, layers=1), params, load_tokenizer(INIT / "tokenizer.json"))
    (path / "init" / "run.json").write_text((INIT / "run.json").read_text().replace('"layers": 2', '"layers": 1'))
    for name, count, seed in (("train", 320, 0), ("dev", 64, 1)):
        lines = texts(count, seed)
        rows = "".join(f"{text}\t{label_of(text)}\n" for text in lines)
        (path / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
        words = [
            "".join(f"{w}\t{'B-place' if w in PLACES else 'O'}\n" for w in text.replace(".", " .").split())
            for text in lines
        ]
        (path / f"{name}.conll").write_text("\n".join(words))
    return path


def config(folder: Path, task: Any = "classify", **given: Any) -> FinetuneConfig:
    suffix = {"classify": "tsv", "tag": "conll"}[task]
    files = {"data": str(folder / f"train.{suffix}"), "valid": str(folder / f"dev.{suffix}")}
    given = {"init": str(folder / "init"), "task": task, "epochs": 6.0, **SETTINGS, **given}
    return FinetuneConfig(**files, **given)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A run that classifies."""
    return finetune(config(folder, out=str(folder / "classify")))[0]


@pytest.fixture(scope="module")
def tagger(folder: Path) -> Path:
    """A run that tags."""
    return finetune(config(folder, "tag", out=str(folder / "tag")))[0]


def test_labels_are_learned_and_stored_once(trained: Path) -> None:
    scores = json.loads((trained / "scores.json").read_text())
    assert scores["accuracy"] > 0.9
    assert scores["of"] == "examples that chose nothing"
    validated = [line for line in read_metrics(trained) if line["kind"] == "valid"]
    kept = min(validated, key=lambda line: (-line["accuracy"], line["step"]))
    assert scores["choosing"] == {name: kept[name] for name in ("step", "accuracy")}
    task = read_task(trained)
    assert task is not None
    assert task.labels == ("bread", "jar", "none") == tuple(scores["per_label"])
    assert sum(map(sum, scores["confusion"]["right_by_predicted"])) == 64
    page = (trained / "report.html").read_text()
    assert all(word in page for word in ("Scores", "right \\ predicted", "best accuracy"))
    log = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "accuracy", "macro_f1", "mcc"} <= next(line for line in log if line["kind"] == "valid").keys()


def size(matrix: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(matrix))))


@pytest.mark.parametrize(
    ("changed", "freeze", "rate", "smaller"),
    [
        ({}, 0, 7.5e-4, True),
        ({}, 1, 7.5e-4, False),
        ({"steps": 0}, 0, 3e-4, False),
        ({"steps": 0, "budget": "30m"}, 0, 7.5e-4, True),
        ({"init": "bert-base/"}, 0, 3e-4, False),
        ({"init": str(INIT)}, 0, 7.5e-4, True),
        ({"distil": DistilConfig(distil="bert-base/")}, 0, 3e-4, False),
    ],
    ids=["steps", "frozen", "imported", "budget", "continued", "own continued", "distilled"],
)
def test_what_began_at_random_takes_larger_steps_from_smaller_matrices(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    freeze: int,
    rate: float,
    smaller: bool,
) -> None:
    before, (step, params) = read_run(INIT), load_params(INIT, "best")
    first = iter([replace(before, **changed)])
    large = jax.tree.map(lambda leaf: leaf * np.float32(30), params)
    monkeypatch.setattr(pretrained, "read_run", lambda run: next(first, before))
    monkeypatch.setattr(pretrained, "load_params", lambda run, which: (step, large))
    made = plan(config(folder, init=str(INIT), out=str(tmp_path / "run"), lr=0.0, freeze=freeze))
    assert made.config.optim.lr == pytest.approx(rate)
    assert made.start is not None
    given, begun = leaves(large), leaves(made.start.params)
    kept = [path for path in begun if path in given and path[-1] in {"kernel", "token_table"}]
    assert kept
    for path in kept:
        if smaller:
            assert size(begun[path]) == pytest.approx(0.04, rel=1e-4)
        else:
            np.testing.assert_array_equal(begun[path], given[path])
    assert any("are scaled" in line for line in made.lines) == smaller == ("shrunk" in made.start.origin)


def test_a_hugging_face_directory_is_tuned_as_it_is(folder: Path, tmp_path: Path) -> None:
    assert hf(["export", str(INIT), str(tmp_path / "hf")]) == 0
    made = plan(config(folder, init=str(tmp_path / "hf"), out=str(tmp_path / "run"), lr=0.0))
    assert made.config.optim.lr == pytest.approx(3e-4)
    assert made.start is not None
    assert made.start.origin == {"from": str((tmp_path / "hf").resolve())}


def test_weights_that_are_not_finite_are_not_tuned(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, params = load_params(INIT, "best")
    params["layer_0"]["mlp"]["up"]["kernel"] = np.full_like(params["layer_0"]["mlp"]["up"]["kernel"], np.nan)
    monkeypatch.setattr(pretrained, "load_params", lambda run, which: (step, params))
    with pytest.raises(UserError, match=r"weights that are not finite, in layer_0\.mlp\.up\.kernel"):
        plan(config(folder, init=str(INIT), out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_large_matrices_are_shrunk_with_their_biases() -> None:
    """Kernels are left at twice a random one's size at most; what an embedding adds up keeps its proportions."""
    random = np.random.default_rng(0)

    def drawn(std: float, *shape: int) -> np.ndarray:
        return random.normal(0, std, shape).astype(np.float32)

    given: dict[str, Any] = {
        "token_table": drawn(0.2, 50, 8),
        "position_table": drawn(0.02, 9, 8),
        "embedding_norm": {"scale": drawn(3, 8), "bias": drawn(3, 8)},
        "layer_0": {"up": {"kernel": drawn(0.5, 8, 16), "bias": drawn(1, 16)}, "down": {"kernel": drawn(0.03, 16, 8)}},
    }
    found, factor = shrunk(given)
    up, kept = found["layer_0"]["up"], given["layer_0"]["up"]
    assert size(up["kernel"]) == pytest.approx(0.04, rel=1e-5)
    assert factor == pytest.approx(0.04 / size(kept["kernel"]))
    np.testing.assert_allclose(up["bias"] / kept["bias"], factor, rtol=1e-5)
    tables = found["token_table"][:9] / found["position_table"], given["token_table"][:9] / given["position_table"]
    np.testing.assert_allclose(*tables, rtol=1e-5)
    assert size(found["token_table"]) == pytest.approx(0.04, rel=1e-5)
    for part in ("embedding_norm", "down"):
        assert_trees_equal({**found, **found["layer_0"]}[part], {**given, **given["layer_0"]}[part])
    assert shrunk(found)[1] == pytest.approx(1), "nothing is left to scale"


def test_attention_is_chosen_on_rows_of_examples(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for masked tokens: on an accelerator, for the most examples that a row isolates; run.json keeps it."""
    asked: list[tuple[np.ndarray, int]] = []

    def choose(model: Any, dtype: Any, mesh: Any, segments: np.ndarray, documents: int, before: Any) -> Any:
        asked.append((segments, documents))
        return Kernels(documents=16), {"whole": {"kernel": "ours", "tried": {}}}

    monkeypatch.setattr(setup, "choose_attention", choose)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    ready = plan(config(folder))
    kernels, record = setup.kernels_of(ready.config, ready.data.train, make_mesh(8, 1), tmp_path)
    ((segments, documents),) = asked
    assert segments.shape == (8, 64)
    rows = ready.data.train.gather(np.arange(len(ready.data.train))).segments
    assert documents == 1 + np.max(rows), "padding is one of them"
    assert record
    assert kernels.documents == 16
    monkeypatch.setattr(finetuning, "kernels_of", lambda *_: (kernels, record))
    assert finetuning.set_up_plan(ready, ready.config, tmp_path).attention == record


def test_evaluate_measures_what_training_reported(trained: Path, folder: Path, capsys: Any) -> None:
    answers = folder / "answers.jsonl"
    line = [str(trained), "--data", str(folder / "dev.tsv"), "--predictions", str(answers), "--json"]
    assert evaluate.main(line) == 0
    measured = json.loads(capsys.readouterr().out)
    reported = json.loads((trained / "scores.json").read_text())
    assert {name: reported[name] for name in measured} == measured
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["sentence"] for row in rows] == texts(64, 1)
    right = [row["label"] == row["prediction"] for row in rows]
    assert np.mean(right) == measured["accuracy"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in rows)


def test_texts_without_labels_get_answers_but_no_scores(trained: Path, folder: Path, capsys: Any) -> None:
    (folder / "plain.jsonl").write_text('{"sentence": "my sister sells a jar.", "id": 7, "prediction": "mine"}\n')
    assert evaluate.main([str(trained), "--data", str(folder / "plain.jsonl")]) == 2
    assert "has no labels: give --predictions" in capsys.readouterr().err
    line = [str(trained), "--data", str(folder / "plain.jsonl"), "--predictions", str(folder / "out.jsonl")]
    assert evaluate.main(line) == 0
    row = json.loads((folder / "out.jsonl").read_text())
    assert (row["id"], row["prediction"], row["predicted_prediction"]) == (7, "mine", "jar")

    assert evaluate.main([*line, "--json"]) == 0
    (printed,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert {"file": str(folder / "plain.jsonl"), "examples": 0, "predictions": 1}.items() <= json.loads(printed).items()


def test_what_json_has_not_is_echoed_in_words(trained: Path, folder: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    import pyarrow.parquet as pq

    day = datetime(2026, 11, 30, 2, 6, 34)
    columns = {"sentence": ["a jar"], "day": [day], "price": [Decimal("1.50")], "code": [b"\xffa"], "share": [math.nan]}
    pq.write_table(pa.table({**columns, "dates": [[day.date()]], "wait": [timedelta(hours=1)]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"sentence": "x\\ud83d", "id": "\\ud83d", "far": Infinity}\n')
    out, rows = tmp_path / "out.jsonl", []
    for name in ("a.parquet", "a.jsonl"):
        assert evaluate.main([str(trained), "--data", str(tmp_path / name), "--predictions", str(out)]) == 0
        rows.append(json.loads(out.read_text(), parse_constant=pytest.fail))
    first, second = rows
    assert (first["day"], first["price"], first["code"]) == ("2026-11-30T02:06:34", "1.50", "\\xffa")
    assert (first["share"], first["dates"], first["wait"]) == (None, ["2026-11-30"], "1:00:00")
    assert (second["sentence"], second["id"], second["far"]) == ("x?", "?", "Infinity")


def test_a_time_that_python_has_not_is_refused(trained: Path, tmp_path: Path, capsys: Any) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    import pyarrow.parquet as pq

    late = pa.array([1 << 60], pa.timestamp("ms"))
    pq.write_table(pa.table({"sentence": ["a jar"], "day": late}), tmp_path / "a.parquet")
    line = [str(trained), "--data", str(tmp_path / "a.parquet"), "--predictions", str(tmp_path / "out.jsonl")]
    assert evaluate.main(line) == 2
    assert "a.parquet: not a readable Parquet file (" in capsys.readouterr().err


def test_predictions_that_cannot_be_written_are_refused_before_anything_is_computed(
    trained: Path, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "predicted", pytest.fail)
    assert evaluate.main([str(trained), "--data", str(folder / "dev.tsv"), "--predictions", str(folder)]) == 2
    assert "is a folder: give a file" in capsys.readouterr().err


def test_columns_that_a_run_does_not_read_are_refused_by_name(
    trained: Path, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev = str(folder / "dev.tsv")

    def refused(run: Path, *given: str) -> str:
        assert evaluate.main([str(run), "--data", dev, *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--pair label: " in (line := refused(trained, "--pair", "label"))
    assert line.endswith("judges one text: leave it out")
    for option in ("--text", "--pair", "--label"):
        assert "was not fine-tuned, so no columns are read: leave out --text" in refused(INIT, option, "label")
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, "read_task", lambda run: TaskConfig("tag", ("O", "B-x", "I-x")))
            assert "was fine-tuned to tag, and reads whole files" in refused(trained, option, "label")


def test_what_shares_a_row_changes_no_answer(trained: Path) -> None:
    task, run = read_task(trained), read_run(trained)
    assert task is not None
    tokenizer, (_, params) = load_tokenizer(trained / "tokenizer.json"), load_params(trained, "best")
    examples = [Example(f"line {i}", text) for i, text in enumerate([*texts(20, 5), " ".join(texts(9, 6)), ""])]
    _, together = predicted(run, task, tokenizer, params, examples)
    for number in (0, 7, 20, 21):
        _, alone = predicted(run, task, tokenizer, params, examples[number : number + 1])
        np.testing.assert_allclose(together[number], alone[0], atol=1e-5)


@pytest.mark.slow
def test_stopped_and_resumed_is_bitwise_the_same(trained: Path, folder: Path) -> None:
    out = str(folder / "resumed")
    with pytest.raises(KeyboardInterrupt, match=r"python -m jax_mlm.finetune --resume --out"):
        finetune(config(folder, out=out), stopped_after(7))
    assert train(["--resume", "--out", out]) == 2
    again, _ = finetune(replace(config(folder, out=out), resume=True))
    assert_trees_equal(load_params(again, "latest"), load_params(trained, "latest"))
    assert json.loads((again / "scores.json").read_text()) == json.loads((trained / "scores.json").read_text())


EIGHT = """
import json, sys
from jax_mlm.finetune import finetune
from jax_mlm.parallel import compile as compiling, rules
from jax_mlm.run.log import read_metrics
from jax_mlm.train.finetune_options import FinetuneConfig, defaults
from support.runs import stopped_after
compiling.FAST_BF16, rules.LARGE = False, 0  # in float32, and with the moments divided over data
given, out = json.loads(sys.argv[1]), sys.argv[2]
try:
    finetune(FinetuneConfig(**given, mesh="data=2,fsdp=4", out=out), stopped_after(15))
except KeyboardInterrupt:
    run, _ = finetune(defaults({"resume": True, "out": out, "mesh": "data=4,fsdp=1,tensor=2"}))
print(json.dumps([line["loss"] for line in read_metrics(run) if line["kind"] == "train"]))
"""


@pytest.mark.slow
def test_a_layout_is_tuned_as_one_device_is_and_goes_on_as_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "FAST_BF16", False)
    given = asdict(config(folder, epochs=3.0))
    one, _ = finetune(FinetuneConfig(**{**given, "out": str(folder / "one")}))
    expected = [line["loss"] for line in read_metrics(one) if line["kind"] == "train"]
    del given["mesh"], given["out"]
    printed = on_eight_devices(EIGHT, json.dumps(given), str(folder / "moved"))
    np.testing.assert_allclose(json.loads(printed.splitlines()[-1]), expected, rtol=1e-5)
    assert read_run(folder / "moved").mesh == "data=4,fsdp=1,tensor=2"
    assert len(expected) > 2


def test_a_run_is_not_resumed_with_other_examples(trained: Path, folder: Path, capsys: Any) -> None:
    file = folder / "train.tsv"
    before = file.read_text()
    file.write_text(before + "x\tjar\n")
    try:
        assert main(["--resume", "--out", str(trained)]) == 2
        assert "--data has changed since the run" in capsys.readouterr().err
    finally:
        file.write_text(before)
    record = (trained / "run.json").read_text()
    known = json.loads(record)
    del known["data"]["choosing"]  # as a version wrote it that divided the file in another way
    try:
        (trained / "run.json").write_text(json.dumps(known))
        assert main(["--resume", "--out", str(trained)]) == 2
        assert "it began with another part of --data to choose by" in capsys.readouterr().err
    finally:
        (trained / "run.json").write_text(record)
    assert main(["--resume", "--out", str(trained), "--lr", "1"]) == 2
    assert "lr differs from its run.json" in capsys.readouterr().err


@pytest.mark.slow
def test_several_seeds_are_averaged_and_the_best_is_kept(folder: Path, capsys: Any) -> None:
    out = folder / "seeds"
    directory, scores = finetune(config(folder, epochs=1.0, seeds=2, out=str(out)))
    values = [each["score"] for each in scores["seeds"]]
    assert scores["mean"] == pytest.approx(np.mean(values))
    assert scores["deviation"] == pytest.approx(np.std(values, ddof=1))
    best = max(scores["seeds"], key=lambda each: (each["choosing"], -each["seed"]))
    assert directory == out / f"seed-{best['seed']}"
    assert [path.parent.name for path in out.glob("seed-*/checkpoints")] == [directory.name]
    again, same = finetune(replace(config(folder, epochs=1.0, seeds=2, out=str(out)), resume=True))
    assert (again, same) == (directory, scores)


@pytest.mark.slow
def test_frozen_layers_stay_bitwise_as_they_were(folder: Path) -> None:
    run, _ = finetune(config(folder, init=str(INIT), epochs=1.0, freeze=1, out=str(folder / "frozen")))
    before, after = load_params(INIT, "best")[1], load_params(run, "latest")[1]
    for name in ("token_table", "embedding_norm", "layer_0"):
        assert_trees_equal(after[name], before[name])
    assert not np.array_equal(after["layer_1"]["mlp"]["up"]["kernel"], before["layer_1"]["mlp"]["up"]["kernel"])


# ---- several labels, numbers, pairs --------------------------------------------------------------


def rows_of(problem: str, count: int, seed: int) -> str:
    rows = []
    for text in texts(count, seed):
        labels = [word for word in ("bread", "market", "sister") if word in text]
        label: object = labels if problem == "multi" else 1.5 * len(labels)
        rows.append(json.dumps({"text": text, "second": "in the barn.", "label": label}) + "\n")
    return "".join(rows)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["multi", "regression"])
def test_several_labels_and_numbers_are_learned_of_pairs_too(problem: str, tmp_path: Path) -> None:
    for name, count, seed in (("train", 320, 0), ("dev", 40, 1)):
        (tmp_path / f"{name}.jsonl").write_text(rows_of(problem, count, seed))
    files = {"data": str(tmp_path / "train.jsonl"), "valid": str(tmp_path / "dev.jsonl"), "out": str(tmp_path / "run")}
    given = FinetuneConfig(str(INIT), "classify", pair="second", epochs=12.0, **files, **SETTINGS)
    run, scores = finetune(given)
    task = read_task(run)
    assert task is not None
    assert (task.problem, task.pair) == (problem, True)
    assert scores["micro_f1" if problem == "multi" else "pearson"] > 0.8
    assert evaluate.main([str(run), "--data", files["valid"], "--predictions", str(tmp_path / "out.jsonl")]) == 0


# ---- entities ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_entities_are_learned_and_are_what_stands_in_the_text(tagger: Path, folder: Path) -> None:
    scores = json.loads((tagger / "scores.json").read_text())
    assert scores["f1"] > 0.9
    answers = folder / "entities.jsonl"
    assert evaluate.main([str(tagger), "--data", str(folder / "dev.conll"), "--predictions", str(answers)]) == 0
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert all(row["text"][e["start"] : e["end"]] == e["text"] for row in rows for e in row["entities"])
    (folder / "raw.jsonl").write_text(json.dumps({"text": "the baker sells a jar in the barn."}) + "\n")
    line = [str(tagger), "--data", str(folder / "raw.jsonl"), "--predictions", str(answers)]
    assert evaluate.main(line) == 0
    (row,) = (json.loads(line) for line in answers.read_text().splitlines())
    assert [e["text"] for e in row["entities"]] == ["barn"]  # the word apart from its punctuation


# ---- Hugging Face --------------------------------------------------------------------------------


def round_trip(run: Path, folder: Path) -> Path:
    there, back = folder / f"{run.name}-hf", folder / f"{run.name}-back"
    assert hf(["export", str(run), str(there)]) == 0
    assert hf(["import", str(there), str(back)]) == 0
    learned, read = read_task(run), read_task(back)
    assert learned is not None
    assert read is not None
    assert read.labels == learned.labels
    assert_trees_equal(dict(load(back).params), dict(load(run).params))
    return back


def test_fine_tuned_runs_go_to_hugging_face_and_come_back(trained: Path, folder: Path, capsys: Any) -> None:
    back = round_trip(trained, folder)
    assert "pipeline_tag: text-classification" in (folder / "classify-hf" / "README.md").read_text()
    line = [str(back), "--data", str(folder / "dev.tsv"), "--json"]
    assert evaluate.main([*line, "--text", "sentnce"]) == 2
    assert "did you mean sentence?" in capsys.readouterr().err
    assert evaluate.main(line) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["accuracy"] == json.loads((trained / "scores.json").read_text())["accuracy"]


def test_a_classifier_of_pairs_stays_one_and_is_made_one_by_the_column_of_its_second_text(
    trained: Path, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    there, run, pairs = tmp_path / "hf", tmp_path / "run", tmp_path / "pairs.jsonl"
    pairs.write_text('{"sentence": "a jar", "second": "a bread", "label": "jar"}\n' * 2)
    assert hf(["export", str(trained), str(there)]) == 0
    assert hf(["import", str(there), str(run), "--pair", "second"]) == 0
    task = read_task(run)
    assert task is not None
    assert (task.pair, task.columns) == (True, ("", "second", ""))
    assert evaluate.main([str(run), "--data", str(pairs), "--text", "sentence"]) == 0
    assert hf(["export", str(run), str(tmp_path / "again")]) == 0
    assert hf(["import", str(tmp_path / "again"), str(tmp_path / "back")]) == 0
    back = read_task(tmp_path / "back")
    assert back is not None
    assert back.pair
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "back"), "--data", str(pairs), "--text", "sentence"]) == 2
    assert "judges two texts together: name the column of the second with --pair" in capsys.readouterr().err
    line = [str(tmp_path / "back"), "--data", str(pairs), "--text", "sentence", "--pair", "second"]
    assert evaluate.main(line) == 0
    with pytest.raises(BundleError, match=r"does not name the column of the second text: .* --pair COLUMN"):
        labelled_examples(read_run(run).model, {}, load_tokenizer(run / "tokenizer.json"), Tuned(back, 64), pairs)
    assert hf(["export", str(INIT), str(tmp_path / "masked")]) == 0
    assert hf(["import", str(tmp_path / "masked"), str(tmp_path / "no"), "--pair", "second"]) == 2
    assert "--pair second: " in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_taggers_go_to_hugging_face_and_come_back(tagger: Path, folder: Path) -> None:
    assert evaluate.main([str(round_trip(tagger, folder)), "--data", str(folder / "dev.conll")]) == 0


@pytest.mark.slow
def test_transformers_pipelines_give_our_answers(trained: Path, tagger: Path, folder: Path) -> None:
    pytest.importorskip("torch", reason="compares with torch: pip install 'jax-mlm[reference]'")
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    for run, data, more in (
        (trained, "dev.tsv", {}),
        (tagger, "dev.conll", {"aggregation_strategy": "first"}),
    ):
        there, answers = folder / f"{run.name}-pipeline", folder / "ours.jsonl"
        assert hf(["export", str(run), str(there)]) == 0
        assert evaluate.main([str(run), "--data", str(folder / data), "--predictions", str(answers)]) == 0
        name = "text-classification" if run == trained else "token-classification"
        pipeline = transformers.pipeline(name, model=str(there), **more)
        for row in map(json.loads, answers.read_text().splitlines()[:16]):
            if run == trained:
                (theirs,) = pipeline([row["sentence"]])
                assert theirs["label"] == row["prediction"]
                assert theirs["score"] == pytest.approx(row["probability"], abs=1e-4)
            else:
                found = [(e["entity_group"], e["start"], e["end"]) for e in pipeline(row["text"])]
                assert found == [(e["label"], e["start"], e["end"]) for e in row["entities"]]


# ---- parts ---------------------------------------------------------------------------------------


def test_weights_of_classes_weigh_the_loss_and_what_it_is_divided_by() -> None:
    logits = np.random.default_rng(0).normal(size=(1, 4, 2)).astype(np.float32)
    targets, weights = np.array([[0, 1, 1, 1]]), np.array([[3.0, 1.0, 1.0, 0.0]], np.float32)
    metrics = jax.jit(label_metrics, static_argnums=0)("single", logits, targets, weights)
    losses = np.log(np.exp(logits[0]).sum(-1)) - logits[0, np.arange(4), targets[0]]
    assert float(metrics.loss_sum) == pytest.approx(float((losses * weights[0]).sum()), rel=1e-6)
    assert float(metrics.count) == 5
    task = read_task_of(("a", "b"))
    np.testing.assert_allclose(class_weights("balanced", task, targets[0]), [4 / 2, 4 / 6])
    np.testing.assert_allclose(class_weights("b=0.5", task, targets[0]), [1, 0.5])


def read_task_of(labels: tuple[str, ...]) -> Any:
    from jax_mlm.config import TaskConfig

    return TaskConfig("classify", labels)


def test_the_last_example_of_a_label_is_learned_where_there_are_others_to_choose() -> None:
    for label in range(20):  # wherever it stands
        examples = [Example(f"line {i}", f"text {i}", label="rare" if i == label else "ab"[i % 2]) for i in range(20)]
        learned, choosing = split_by_text(examples)
        assert len(choosing) == 1
        assert {e.label for e in learned} == {"a", "b", "rare"}
        spans = [replace(e, label=None, spans=(Span(0, 4, str(e.label)),)) for e in examples]
        assert {s.label for e in split_by_text(spans)[0] for s in e.spans or ()} == {"a", "b", "rare"}
    numbers = [Example(f"line {i}", f"text {i}", label=str(i)) for i in range(100)]
    assert len(split_by_text(numbers)[1]) == 5, "each has a label of its own"
    numbers = [replace(each, label=str(min(i, 97))) for i, each in enumerate(numbers)]
    assert len(split_by_text(numbers, numbers=True)[1]) == 5, "in a regression, a number is no label to learn"


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        (["x", "y"], [], "line 3: no example that is learned has the label 'y'"),
        (["x", "y"], [], "warning: one example chooses: give others with --valid"),
        ([1.5] * 60 + [2], ["--problem", "regression"], "warning: pearson of the 3 examples that choose is always 0"),
        (["x"] * 60 + ["y"] * 2, ["--metric", "mcc"], "warning: mcc of the 3 examples that choose is always 0"),
    ],
)
def test_what_cannot_be_learned_or_chosen_by_is_said(
    labels: list[object], more: list[str], said: str, tmp_path: Path, capsys: Any
) -> None:
    rows = "".join(f"word{i}\t{label}\n" for i, label in enumerate(labels))
    (tmp_path / "a.tsv").write_text(f"text\tlabel\n{rows}")
    given = COMMAND.read(
        ["--init", str(INIT), "--task", "classify", "--data", str(tmp_path / "a.tsv"), "--length", "64", *more]
    )
    assert any(said in line for line in plan(given).lines)


def test_more_steps_than_are_counted_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "MOST_STEPS", 1000)
    with pytest.raises(UserError, match=r"--epochs 1e\+06 of .* rows are more than 1000 steps: give fewer"):
        plan(config(folder, epochs=1e6))


def test_a_damaged_record_of_several_seeds_is_one_line(tmp_path: Path, capsys: Any) -> None:
    for content, said in (("{", "seeds.json is not valid JSON"), ("[]", "seeds.json: its options are not those")):
        (tmp_path / "seeds.json").write_text(content)
        assert main(["--resume", "--out", str(tmp_path)]) == 2
        assert said in capsys.readouterr().err
    for content in ("{", "[]", '{"metric": "f1"}', '{"metric": "f1", "f1": 1.0, "choosing": []}'):
        (tmp_path / "scores.json").write_text(content)
        with pytest.raises(UserError, match=r"scores\.json .*: .*or remove it"):
            read_scores(tmp_path)


def test_equal_texts_are_on_one_side_of_the_split() -> None:
    examples = [Example(f"line {i}", f"text {i % 100} ") for i in range(400)]
    learned, choosing = split_by_text(examples)
    assert len(learned) + len(choosing) == 400
    assert 12 <= len(choosing) <= 28
    assert not {e.text for e in learned} & {e.text for e in choosing}
    assert split_by_text(examples) == (learned, choosing)


def test_a_phrase_is_on_the_side_of_its_sentence() -> None:
    """SST-2 gives each sentence with its phrases: the part that chooses must not have been learned in pieces."""
    sentences = [f"the {i}th film is a {i % 7} hour bore , and so is {i + 1000}" for i in range(60)]
    texts = [" ".join(s.split()[at:end]) for s in sentences for at, end in ((0, 13), (1, 6), (6, 13), (1, 4))]
    learned, choosing = split_by_text([Example(f"line {i}", text) for i, text in enumerate(texts)], 0.1)
    assert 12 <= len(choosing) <= 24
    for example in choosing:
        assert not any(f" {example.text} " in f" {other.text} " for other in learned)
        assert not any(f" {other.text} " in f" {example.text} " for other in learned if "film" in other.text)


def test_texts_that_all_lie_in_one_are_split_all_the_same() -> None:
    texts = ["a", "a b", "a b c", "b c"]
    learned, choosing = split_by_text([Example(f"line {i}", text) for i, text in enumerate(texts)])
    assert (len(learned), len(choosing)) == (3, 1)


def test_a_run_ends_when_no_validation_is_better_for_long_enough() -> None:
    def ended(ranks: list[float], patience: int) -> list[int]:
        pace = Pace(100, None, 10, {"step": 0, "elapsed": 0.0, "horizon": 0}, 1.0, patience=patience)
        horizons = []
        for number, rank in enumerate(ranks, 1):
            pace.judge(10 * number, rank)
            horizons.append(pace.horizon)
        again = Pace(100, None, 10, pace.meta(10 * len(ranks)), 1.0, patience=patience)
        assert again.horizon == (10 * len(ranks) if horizons[-1] < 100 else 100)
        return horizons

    assert ended([3.0, 2.0, 2.5, 2.5], 2) == [100, 100, 100, 40]
    assert ended([3.0, 2.0, 2.5, 1.0], 2) == [100] * 4
    assert ended([1.0] * 9, 0) == [100] * 9


# ---- what is refused -----------------------------------------------------------------------------

WRONG: dict[str, tuple[list[str], str]] = {
    "no encoder": (["--task", "classify", "--data", "train.tsv"], "--init is missing"),
    "no task": (["--init", "INIT", "--data", "train.tsv"], "--task is missing"),
    "no data": (["--init", "INIT", "--task", "classify"], "--data is missing"),
    "no such file": (["--data", "nowhere.tsv"], "nowhere.tsv: no such file"),
    "no such encoder": (["--init", "nowhere"], "nowhere is neither a run"),
    "a label only to report on": (["--valid", "unseen.tsv"], "unseen.tsv, line 3: the label 'jra'"),
    "no such column": (["--text", "sentnce"], "did you mean sentence?"),
    "one label": (["--data", "one.tsv"], "every example has the label 'a'"),
    "labels without one": (["--labels", "bread,none"], "the label 'jar' is not one of those learned"),
    "no numbers": (["--problem", "regression"], "is not a number"),
    "no such metric": (["--metric", "f1_macro"], "--metric f1_macro: choose"),
    "weights of no label": (["--class-weights", "jra=2"], "did you mean jar?"),
    "weights of a kind": (["--class-weights", "heavy"], "write balanced, or label=weight"),
    "more layers than there are": (["--freeze", "3"], "--freeze 3: the model has 2 layers"),
    "too long": (["--length", "65"], "--length 65 exceeds the 64 positions"),
    "too much overlap": (["--overlap", "40"], "--overlap 40 must be less than half"),
    "a folder": (["--data", "."], ".: is a folder"),
    "a missing label to report on": (["--valid", "missing.tsv"], "missing.tsv, line 3: the label is missing"),
    "a column for two things": (["--text", "label", "--label", "label"], "must name different columns"),
    "labels of numbers": (["--data", "numbers.tsv", "--labels", "a"], "--labels is for texts with labels"),
    "two lengths": (["--epochs", "1", "--budget", "1m"], "exclude each other"),
    "a test without a choice": (["--valid", "", "--test", "dev.tsv"], "--test needs --valid"),
    "an unknown task": (["--task", "clasify"], "did you mean classify?"),
    "no such axis": (["--mesh", "fdsp=2"], "did you mean fsdp?"),
    "devices that are not here": (["--mesh", "fsdp=3"], "--mesh fsdp=3 is for 3 devices"),
    "a taken directory": (["--out", "."], "exists already"),
    "one number": (["--data", "constant.tsv", "--problem", "regression"], "every example has the label '1.5'"),
    **{
        f"--{option} {value}": ([f"--{option}={value}", "--data", "nowhere.tsv"], message)
        for option, value, message in (
            ("lr", "nan", "--lr must be at most 1e+30, not nan"),
            ("lr", "-1", "--lr must be at least 0, not -1.0"),
            ("seed", "4294967296", "--seed must be at most 4294967295, not 4294967296"),
            ("seeds", "0", "--seeds must be at least 1, not 0"),
            ("batch", "100000000", "--batch must be at most 16777216, not 100000000"),
            ("length", "100000000", "--length must be at most 16777216, not 100000000"),
            ("epochs", "1e12", "--epochs must be at most 1000000, not 1000000000000.0"),
            ("epochs", "nan", "--epochs must be at most 1000000, not nan"),
            ("overlap", "-5", "--overlap must be at least -1, not -5"),
            ("patience", "-1", "--patience must be at least 0, not -1"),
            ("freeze", "-1", "--freeze must be at least 0, not -1"),
            ("budget", "1y", "--budget '1y' is not a time"),
        )
    },
    "seeds beyond the last": (
        ["--seed", "4294967295", "--seeds", "2", "--data", "nowhere.tsv"],
        "--seed 4294967295 and --seeds 2: the last seed must be at most 4294967295",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_costs_one_line_and_nothing_is_written(
    name: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "unseen.tsv").write_text("sentence\tlabel\na jar\tjar\na jra\tjra\n")
    (folder / "one.tsv").write_text("sentence\tlabel\nb\ta\nc\ta\n")
    (folder / "missing.tsv").write_text("sentence\tlabel\na jar\tjar\na jar\t\n")
    (folder / "numbers.tsv").write_text("sentence\tlabel\na jar\t1.5\na bread\t2\n")
    (folder / "constant.tsv").write_text("sentence\tlabel\na jar\t1.5\na bread\t1.50\n")
    given, message = WRONG[name]
    usual = ["--init", "INIT", "--task", "classify", "--data", "train.tsv", "--valid", "dev.tsv", "--out", "new"]
    whole = given if name in ("no encoder", "no task", "no data") else [*usual, *given]
    assert main([word.replace("INIT", str(INIT)) for word in whole]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    assert message in line
    assert not (folder / "new").exists()


@pytest.mark.parametrize(
    ("command", "given"), [("classify", "dev.tsv"), pytest.param("tag", "plain.jsonl", marks=pytest.mark.slow)]
)
def test_a_bundle_answers_a_file_as_evaluate_does(
    command: str, given: str, folder: Path, request: pytest.FixtureRequest, capsys: Any
) -> None:
    run: Path = request.getfixturevalue("trained" if command == "classify" else "tagger")
    rows = [{"text": text} for text in texts(40, 3)]
    (folder / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers, out = folder / "answers.jsonl", folder / "deep" / f"{command}.jsonl"
    assert evaluate.main([str(run), "--data", str(folder / given), "--predictions", str(answers)]) == 0
    calibrate = ["--calibrate", str(folder / ("dev.tsv" if command == "classify" else "dev.conll"))]
    assert onnx(["convert", str(run), str(folder / f"b-{command}"), *calibrate]) == 0
    capsys.readouterr()
    assert onnx([command, str(folder / f"b-{command}"), "--file", str(folder / given), "--out", str(out)]) == 0
    assert f"{out}: {64 if command == 'classify' else 40} rows in" in capsys.readouterr().err
    for ours, theirs in zip(map(json.loads, out.open()), map(json.loads, answers.open()), strict=True):
        assert ours.keys() >= {"sentence" if command == "classify" else "text"}
        if command == "classify":
            assert (ours["label"], ours["predicted_label"]) == (theirs["label"], theirs["prediction"])
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=0.1)
        else:
            assert [each["text"] for each in ours["entities"]] == [each["text"] for each in theirs["entities"]]
    manifest = read_manifest(folder / f"b-{command}")
    calibration = manifest["parity"]["calibration"]
    assert calibration["as_jax"]["fp32"] == 1
    assert calibration["drop"] <= 0.005
    assert manifest["labels"] == list(read_task(run).labels)


def test_commands_for_masked_words_name_what_fits(trained: Path, folder: Path, capsys: Any) -> None:
    assert onnx(["convert", str(trained), str(folder / "bundle"), "--for", "space"]) == 2
    assert train(["--init", str(trained), "--data", str(folder / "train.tsv"), "--out", str(folder / "x")]) == 2
    assert evaluate.main([str(trained), "--data", str(folder / "dev.tsv"), "--pll"]) == 2
    assert evaluate.main([str(trained), "--pairs", str(folder / "dev.tsv")]) == 2
    assert main(["--resume", "--out", str(INIT)]) == 2
    assert evaluate.main([str(INIT), "--data", str(folder / "dev.tsv"), "--predictions", "x"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert [sum(word in line for word in ("fine-tuned", "python -m jax_mlm")) > 0 for line in errors] == [True] * 6


@pytest.mark.slow
def test_the_command_prints_the_scores_and_the_directory(folder: Path, capsys: Any) -> None:
    out = folder / "printed"
    line = ["--init", str(INIT), "--task", "classify", "--data", str(folder / "train.tsv"), "--out", str(out)]
    assert main([*line, "--epochs", "1", "--batch", "8", "--length", "64"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == str(out)
    assert "the part of --data that chose the checkpoint" in printed.out
    assert "starting fresh: classifier" in printed.err
    assert read_run_file(out)["finetune"]["epochs"] == 1
