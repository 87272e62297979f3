"""The run directory: configurations survive the round trip, and metrics never hold a step twice."""

import json
from dataclasses import replace

import pytest

from jax_mlm.config import MaskConfig, ModelConfig, TrainConfig, from_json, to_json
from jax_mlm.errors import UserError
from jax_mlm.presets import PRESETS
from jax_mlm.run.directory import choose_directory, read_run, write_run
from jax_mlm.run.log import MetricsLog, read_metrics, read_samples


@pytest.mark.parametrize("name", list(PRESETS))
def test_configs_round_trip(name, tmp_path):
    config = replace(PRESETS[name], data=("a.txt", "b/"), mask=MaskConfig(mask_rate=0.3, mask_rate_end=0.15))
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config
    write_run(tmp_path, config, {"backend": "cpu"}, {"train": "abc"})
    assert read_run(tmp_path) == config
    body = json.loads((tmp_path / "run.json").read_text())
    assert body["format"] == 1
    assert body["versions"]["jax"]


def test_a_field_of_another_version_is_refused(tmp_path):
    write_run(tmp_path, PRESETS["tiny"], {}, {})
    body = json.loads((tmp_path / "run.json").read_text())
    body["config"]["model"]["flux"] = 3
    (tmp_path / "run.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match="flux"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="not a run directory"):
        read_run(tmp_path / "nothing")


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write("train", step, {"loss": 1.0 / step})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 2')  # a kill in the middle of a line
    log = MetricsLog(tmp_path, resume_after=20)
    log.write("train", 30, {"loss": 0.5})
    log.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(10, 0.1), (20, 0.05), (30, 0.5)]


def test_directories_are_neither_overwritten_nor_mixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = PRESETS["tiny"]
    assert str(choose_directory(config)) == "runs/tiny"
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny-2").mkdir()
    assert str(choose_directory(config)) == "runs/tiny-3"
    (tmp_path / "runs" / "tiny" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="--resume"):
        choose_directory(replace(config, out="runs/tiny"))
    assert str(choose_directory(replace(config, out="runs/tiny", resume=True))) == "runs/tiny"
    with pytest.raises(UserError, match="not a run directory"):
        choose_directory(replace(config, out="runs/tiny-2", resume=True))
    with pytest.raises(UserError, match="--out"):
        choose_directory(replace(config, resume=True))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"width": 30, "heads": 4}, "--heads"),
        ({"layers": 0}, "--layers"),
        ({"layers": 3, "layer_groups": 2}, "--layer-groups"),
    ],
)
def test_contradictions_name_the_option(values, named):
    with pytest.raises(ValueError, match=named):
        ModelConfig(**values)


def test_a_finished_run_resumed_writes_nothing_twice(tmp_path):
    for resume_after in (None, 30, 30):
        log = MetricsLog(tmp_path, resume_after)
        for step in (10, 20, 30) if resume_after is None else (30,):
            log.write("valid", step, {"loss": 1.0})
            log.write_samples(step, [{"text": "a [MASK]"}])
        log.write("final", 30, {"loss": 2.0})
        log.close()
    keys = [(line["kind"], line["step"]) for line in read_metrics(tmp_path)]
    assert keys == [("valid", 10), ("valid", 20), ("valid", 30), ("final", 30)]
    assert [line["step"] for line in read_samples(tmp_path)] == [10, 20, 30]
    log = MetricsLog(tmp_path, 30)  # longer than it was: what was final is so no more
    log.write("valid", 40, {"loss": 0.5})
    log.close()
    assert [line["kind"] for line in read_metrics(tmp_path)] == ["valid"] * 4


def test_a_run_from_before_the_tracker_option_is_read(tmp_path):
    write_run(tmp_path, PRESETS["tiny"], {}, {})
    body = json.loads((tmp_path / "run.json").read_text())
    del body["config"]["track"]
    body["config"]["tensorboard"] = True
    (tmp_path / "run.json").write_text(json.dumps(body))
    assert read_run(tmp_path) == replace(PRESETS["tiny"], track="tensorboard")
