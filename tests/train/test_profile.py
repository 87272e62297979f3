"""--profile: a trace of some steps, and a table of where their time goes."""

import re
import time
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from support.runs import BRIEF

from jax_mlm.presets import PRESETS
from jax_mlm.run.log import read_metrics
from jax_mlm.tasks.metrics import Metrics
from jax_mlm.train.loop import train
from jax_mlm.train.meter import Meter
from jax_mlm.train.options import defaults
from jax_mlm.train.profile import ELSEWHERE, PARTS, described, named

SMALL = replace(PRESETS["sentence"], model=replace(PRESETS["sentence"].model, **BRIEF))
HLO = """%inside.1 (p: f32[2]) -> f32[2] {
  %a.1 = f32[2]{0} negate(%p), metadata={op_name="jit(step)/jvp(M)/layer_0/mlp/neg" id=1}
  ROOT %b.1 = f32[2]{0} negate(%a.1), metadata={op_name="jit(step)/jvp(M)/layer_0/mlp/up/neg" id=1}
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %fusion.7 = f32[2]{0} fusion(%p), kind=kLoop, calls=%inside.1, backend_config={}
  ROOT %copy.2 = f32[2]{0} copy(%fusion.7)
}
"""
"""A compiled step."""


def test_the_table_shares_a_step_out_among_its_parts(tmp_path, capsys):
    run = train(replace(SMALL, steps=8, profile=2, out=str(tmp_path / "run")))
    table = (run / "profile" / "table.txt").read_text()
    step = float(re.search(r"a step takes ([\d.]+) ms", table)[1])
    rows = re.findall(r"^  (.+?)  +([\d.]+)% +([\d.]+) ms$", table, re.M)
    assert {part for part, *_ in rows} <= set(PARTS)
    assert {"attention: its four matrices", "feed-forward: its matrices", "norms", "optimizer"} <= {r[0] for r in rows}
    assert sum(float(share) for _, share, _ in rows) == pytest.approx(100, abs=1)
    assert sum(float(ms) for *_, ms in rows) == pytest.approx(step, rel=0.1, abs=0.6)
    assert table in capsys.readouterr().err.replace("\r", "") + "\n"
    assert list((run / "profile").rglob("*.xplane.pb"))
    assert [line["step"] for line in read_metrics(run) if line["kind"] == "final"] == [8]


@pytest.mark.parametrize(("steps", "table"), [(2, False), pytest.param(5, True, marks=pytest.mark.slow)])
def test_a_run_that_ends_before_the_trace_has_what_there_was(tmp_path, capsys, steps, table):
    run = train(replace(SMALL, steps=steps, profile=100, out=str(tmp_path / "run")))
    assert (run / "profile" / "table.txt").is_file() == table
    assert ("nothing was traced" in capsys.readouterr().err) != table
    assert defaults({"resume": True, "out": str(run)}).profile == 0


def test_an_instruction_without_a_path_has_that_of_its_last_part():
    names = named(HLO)
    assert names["fusion.7"] == "jit(step)/jvp(M)/layer_0/mlp/up/neg"
    assert names["copy.2"] == ""


def test_a_kernel_counts_for_the_instruction_that_it_computes(tmp_path, monkeypatch):
    """A GPU names an event after its kernel; what is not an instruction of the step has a row of its own."""

    def event(name, nanoseconds, **stats):
        return SimpleNamespace(name=name, duration_ns=nanoseconds, stats=[*stats.items()])

    events = [
        event("void cutlass::Kernel2<cutlass_80>", 6.0, hlo_op="fusion.7", hlo_module="jit_step"),
        event("loop_copy_fusion", 1.0, hlo_op="copy.2"),
        event("void scale(float*)", 3.0, hlo_op="command_buffer"),
        event("MemcpyD2D", 90.0),
    ]
    planes = [SimpleNamespace(name="/device:GPU:0", lines=[SimpleNamespace(events=events)])]
    given = SimpleNamespace(from_file=lambda path: SimpleNamespace(planes=planes))
    monkeypatch.setattr(jax.profiler, "ProfileData", given)
    (tmp_path / "a.xplane.pb").touch()
    rows = dict(re.findall(r"^  (.+?)  +([\d.]+)% ", described(tmp_path, HLO, 0.01), re.M))
    assert rows == {"feed-forward: its matrices": "60.0", ELSEWHERE: "30.0", "optimizer": "10.0"}


def test_the_meter_tells_the_share_of_time_that_data_was_waited_for():
    meter = Meter(None)
    with meter.waiting():
        time.sleep(0.02)
    meter.add(Metrics(1.0, 1.0, 1.0), tokens=10)
    first = meter.read(wait=True)["waited"]
    meter.add(Metrics(1.0, 1.0, 1.0), tokens=10)
    time.sleep(0.01)
    assert 0.5 < first <= 1
    assert meter.read(wait=True)["waited"] == 0
