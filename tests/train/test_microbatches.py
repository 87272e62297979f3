"""--accumulate left open: as few microbatches as fit a device's memory, and the same losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.made import made_text
from support.runs import TINY, train_line

from jax_mlm.parallel.compile import compiled_if_it_fits
from jax_mlm.run.directory import read_run
from jax_mlm.run.log import read_metrics
from jax_mlm.train import loop, microbatches, options
from jax_mlm.train.microbatches import SHARE, choose


@pytest.mark.parametrize(("batch", "devices"), [(512, 1), (4608, 8), (24, 2), (7, 1)])
@pytest.mark.parametrize("refused", [1, 3, 100])
def test_the_fewest_that_fit_are_chosen_from_a_few_programs(batch: int, devices: int, refused: int) -> None:
    """A step takes 100 bytes, and 7 for each row of a device; a compiler refuses much more than there is."""
    every = [parts for parts in range(1, batch + 1) if batch % (parts * devices) == 0]
    for room in (90, 107, 135, 300, 1000, 3684, 1e9):
        asked = set[int]()

        def need(parts: int, room: float = room, asked: set[int] = asked) -> float:
            asked.add(parts)
            size = 100 + 7 * batch / (parts * devices)
            return size if size <= refused * room else float("inf")

        found = choose(need, batch, devices, room)
        fitting = [parts for parts in every if 100 + 7 * batch / (parts * devices) <= room]
        assert found == min(fitting, default=every[-1])
        assert asked <= set(every)
        if refused == 100:
            assert len(asked) <= 4


@pytest.mark.parametrize(
    ("sizes", "room"),
    [
        ({1: float("inf")}, 100),
        ({1: float("inf"), 4: 60.0, 8: 45.0, 16: 30.0}, 1000),
        ({1: 500.0, 2: 450.0, 4: 200.0}, 300),
    ],
    ids=["flat", "refused though the line would fit", "not a line"],
)
def test_what_is_chosen_was_seen_to_fit(sizes: dict[int, float], room: float) -> None:
    found = choose(lambda parts: sizes.get(parts, 10.0), 64, 1, room)
    assert found > 1
    assert sizes.get(found, 10.0) <= room


def limited(patch: pytest.MonkeyPatch, limit: int) -> None:
    patch.setattr(microbatches, "limit_of_device", lambda: limit)


def test_the_choice_is_told_kept_in_the_run_and_taken_by_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_compiled(*_: object) -> None:
        raise MemoryError

    text, out = made_text(tmp_path / "made.txt"), tmp_path / "run"
    monkeypatch.setattr(loop, "compile_program", not_compiled)
    monkeypatch.setattr(microbatches, "lowered", lambda task, config, mesh, example: config.accumulate)
    monkeypatch.setattr(microbatches, "compiled_if_it_fits", lambda step: step)
    monkeypatch.setattr(microbatches, "bytes_of", lambda parts: {"all": int(4e6 + 1e6 * 8 / parts)})
    limited(monkeypatch, int(8e6 / SHARE) + 1)
    line = (*TINY, "--steps", 4, "--data", text, "--out", out)
    assert train_line(*line, "--accumulate", 0) == 2
    assert "--accumulate 2: 4 rows at a time; 8 need 12 MB of 8,889 kB" in capsys.readouterr().err
    assert read_run(out).accumulate == 2
    limited(monkeypatch, int(5e6))
    assert train_line("--resume", "--out", out) == 2
    assert "rows at a time;" not in capsys.readouterr().err
    assert read_run(out).accumulate == 2
    assert train_line("--resume", "--out", out, "--accumulate", 0) == 2
    assert read_run(out).accumulate == 8, "not even one row fits"


def test_it_is_left_open_where_a_device_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"preset": "roberta-base", "data": ("x",)}
    assert options.defaults(given).accumulate == 64
    monkeypatch.setattr("jax_mlm.parallel.devices.limit_of_device", lambda: 1 << 40)
    assert options.defaults(given).accumulate == 0


@pytest.mark.slow
def test_less_memory_gives_more_microbatches_and_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Programs of this very step are asked; the one that is run fits, and one of fewer microbatches would not."""
    asked, given = dict[int, int](), list[Any]()
    bytes_of, text = microbatches.bytes_of, made_text(tmp_path / "made.txt")

    def lowered(task: Any, config: Any, *rest: Any) -> Any:
        given[:] = task, config, *rest
        return config.accumulate, original(*given)

    def sized(found: tuple[int, Any]) -> dict[str, int]:
        asked[found[0]] = bytes_of(compiled_if_it_fits(found[1]))["all"]
        return {"all": asked[found[0]]}

    original = microbatches.lowered
    monkeypatch.setattr(microbatches, "lowered", lowered)
    monkeypatch.setattr(microbatches, "compiled_if_it_fits", lambda found: found)
    monkeypatch.setattr(microbatches, "bytes_of", sized)
    losses = []
    for limit in (1 << 40, 0):
        limited(monkeypatch, limit or int(0.7 * asked[1] / SHARE))
        out = tmp_path / str(limit)
        more = ("--dtype", "float32", "--batch", 32, "--steps", 10, "--log-every", 1, "--data", text, "--out", out)
        line = (*TINY, *more)
        assert train_line(*line, "--accumulate", 0) == 0
        losses.append([row["loss"] for row in read_metrics(out) if row["kind"] == "train"])
    parts = read_run(out).accumulate
    assert (read_run(tmp_path / str(1 << 40)).accumulate, parts > 1) == (1, True)
    assert f"--accumulate {parts}: {32 // parts} rows" in capsys.readouterr().err
    task, config, *rest = given
    run, fewer = (sized(lowered(task, replace(config, accumulate=each), *rest))["all"] for each in (parts, parts // 2))
    assert run <= 0.7 * asked[1] < fewer
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
