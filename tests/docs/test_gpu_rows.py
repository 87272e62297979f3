"""The table of training steps on a GPU: its order, what it keeps, what it tries again, and what it counts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from common import gpu_rows
from common.gpu_rows import Failed, Row, Table
from common.steps import Shape, batch_of, our_step

from jax_mlm.data import batches
from jax_mlm.parallel import attention

SHAPE = Shape(width=32, layers=3, heads=2, ff_width=48, vocabulary=512, batch=8, length=512)


def test_rows_are_in_the_order_of_their_worth_and_have_different_names() -> None:
    rows = gpu_rows.rows_of(("base", "large"))
    assert len({row.name for row in rows}) == len(rows)
    assert [row.measure for row in rows[:3]] == ["ours", "torch", "torch, compiled"]
    assert {row.layout for row in rows[:6]} == {"plain"}
    assert rows[-1] == Row("base", "plain", 512, "losses")


def test_a_table_goes_on_with_its_card_and_tries_again_last_what_failed(tmp_path: Path) -> None:
    first, second, third = rows = [Row("base", "plain", length) for length in (128, 512, 1024)]
    out = tmp_path / "table.json"
    table = Table(out, "one card")
    table.keep(first, {"failed": "in /home/me/x.py"})
    table.keep(second, {"milliseconds": 1.0})
    assert str(tmp_path) not in out.read_text()
    assert "/home/me" not in out.read_text()
    assert Table(out, "one card").left(rows) == [third, first]
    assert Table(out, "another card").left(rows) == rows


def test_the_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def answer(job: gpu_rows.Job, python: str, limit: float) -> dict[str, Any]:
        asked.append(job.shape.batch)
        return {"milliseconds": 1.0} if job.shape.batch <= fits else {"too_large": "RESOURCE_EXHAUSTED"}

    monkeypatch.setattr(gpu_rows, "answer", answer)
    fits = 2
    assert gpu_rows.measure(Row("base", "plain", 512), SHAPE, "cuda", 0.0, "python", 9.0)["batch"] == 2
    assert asked == [8, 4, 2]
    fits = 0
    with pytest.raises(Failed, match="RESOURCE_EXHAUSTED"):
        gpu_rows.measure(Row("base", "plain", 512), SHAPE, "cuda", 0.0, "python", 9.0)


def test_a_process_without_an_answer_is_told_by_its_last_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job, script = gpu_rows.Job("ours", "plain", "cpu", 0.0, SHAPE), tmp_path / "script.py"
    monkeypatch.setattr(sys, "argv", [str(script)])
    script.write_text("raise ValueError('what is wrong')")
    with pytest.raises(Failed, match="ValueError: what is wrong"):
        gpu_rows.answer(job, sys.executable, 60)
    assert "Traceback" in capfd.readouterr().err
    script.write_text("import time; time.sleep(60)")
    with pytest.raises(TimeoutError):
        gpu_rows.answer(job, sys.executable, 0.5)


def test_packed_rows_are_isolated_documents_with_padding_at_the_end() -> None:
    batch, most = batch_of(SHAPE, "packed")
    segments = np.asarray(batch.segments)
    assert segments.shape == (8, 512)
    assert 1 < segments.max() < most
    assert ((np.diff(segments) >= 0) | (segments[:, 1:] == 0)).all()


def test_what_a_program_says_when_it_fails_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_rows.told(sys.executable, "print(1); print(2)") == ["1", "2"]
    assert not capsys.readouterr().err
    assert gpu_rows.told(sys.executable, "print(1); import nothing_of_this_name") == []
    assert "No module named 'nothing_of_this_name'" in capsys.readouterr().err


def test_no_row_begins_after_the_time_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_rows, "told", lambda python, program: ["gpu", "one card"])
    monkeypatch.setattr(gpu_rows, "measure", lambda *given: pytest.fail("a row has begun"))
    said: list[str] = []
    gpu_rows.run(tmp_path / "rows.json", 0, sys.executable, False, said.append)
    assert said[-1] == "the time is over: the same command goes on with the next row"
    assert not (tmp_path / "rows.json").exists()


class _Asked(Exception):
    """What attention is chosen for."""


def test_attention_is_chosen_for_the_documents_of_the_rows_as_a_run_counts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed: list[int] = []

    def pack_rows(*given: Any) -> batches.Rows:
        rows = pack(*given)
        packed.append(rows.documents)
        return rows

    def choose(model: Any, dtype: Any, mesh: Any, segments: np.ndarray, documents: int) -> Any:
        raise _Asked(documents)

    pack = batches.pack_rows
    monkeypatch.setattr(batches, "pack_rows", pack_rows)
    monkeypatch.setattr(attention, "choose_attention", choose)
    for layout, expected in (("packed", lambda: (packed[-1],)), ("plain", lambda: (1,))):
        with pytest.raises(_Asked) as asked:
            our_step(SHAPE, "bfloat16", layout)
        assert asked.value.args == expected()


def test_the_peer_is_timed_by_this_python_if_it_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch"}
    monkeypatch.setattr(gpu_rows, "find_spec", lambda name: name if name in there else None)
    assert gpu_rows.here() is None
    assert "this Python has no PyTorch and transformers" in gpu_rows.without_peer(gpu_rows.here(), False)
    there.add("transformers")
    assert gpu_rows.here() == sys.executable


def test_shares_count_what_attends_and_all_that_is_computed() -> None:
    found = {**SHAPE.__dict__, "milliseconds": 100.0}
    plain, packed, window = (
        gpu_rows.used(Row("base", layout, 512), found, 1e12) for layout in ("plain", "packed", "window")
    )
    assert plain["tokens_per_second"] == 8 * 512 / 0.1
    assert plain["mfu_dense"] == packed["mfu_dense"] == window["mfu_dense"]
    assert window["mfu"] < packed["mfu"] < plain["mfu"] < plain["mfu_dense"], "the last layer is computed at the masks"
    assert "mfu" in gpu_rows.line_of(Row("base", "window", 512), {**found, **window, "memory_peak": 1e9})
