"""What one sees: a live panel at a terminal, plain lines without a control character in a pipe or in CI."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from support.paths import ROOT
from support.runs import BRIEF

from jax_mlm.evals.samples import Answer
from jax_mlm.report.live import at_terminal
from jax_mlm.report.smoothing import ExponentialMean
from jax_mlm.report.words import clipped, duration, gapped, spark
from jax_mlm.run.log import read_samples

SCENE = """
from jax_mlm.report.live import Progress
from jax_mlm.evals.samples import Answer

answers = [Answer("the red [MASK] sees apples", "fox", 0.5, (("fox", 0.5), ("dog", 0.2)), ("the red ", " sees apples"))]
with Progress(plain_every=0.0) as progress:
    for step in range(10, 31, 10):
        figures = {"loss": 10.0 - step / 10, "accuracy": 0.25, "tokens_per_second": 12345.0, "mfu": 0.4}
        progress.update(step, 40, figures, 75.0, 20 if step < 20 else 40)
        if step == 20:
            progress.evaluated(step, 40, {"loss": 7.5, "accuracy": 0.3}, answers)
print("done")
"""


def scene(**environment) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment}
    return subprocess.run(
        [sys.executable, "-c", SCENE], env=env, capture_output=True, text=True, timeout=60, check=True
    )


def seen_at_terminal(columns: int, *line: str, **environment: str) -> tuple[str, str]:
    """What a command sends to a pseudo-terminal that is its stderr, and what it writes on stdout.

    The terminal is the one described here, whatever the tests themselves run in: CI, or a dumb terminal.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment, "TERM": "xterm-256color"}
    env = {name: value for name, value in env.items() if name not in {"CI", "COLUMNS", "LINES", "NO_COLOR"}}
    process = subprocess.Popen([sys.executable, *line], env=env, stderr=theirs, stdout=subprocess.PIPE, text=True)
    os.close(theirs)
    sent = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # how Linux tells that the other end was closed
            break
        if not block:
            break
        sent += block
    os.close(ours)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, sent.decode()
    return sent.decode(), printed


def test_a_pipe_gets_plain_lines():
    done = scene(FORCE_COLOR="1")
    assert done.stdout == "done\n"
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "step 10/40  loss 9.000  accuracy 0.250  12,345 tokens/s  mfu 40.0%  75 s left"
    assert "step 20/40  valid loss 7.5000  accuracy 0.3000" in lines
    assert "  the red [MASK] sees apples  → fox 50%, dog 20%  (right: fox 50%)" in lines
    assert len(lines) == 5


@pytest.mark.parametrize("columns", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_a_terminal_gets_a_panel_that_fits(columns):
    sent, _ = seen_at_terminal(columns, "-c", SCENE)
    assert "╭" in sent
    assert "\x1b[?25l" in sent
    assert sent.rstrip().endswith("\x1b[?25h"), "the cursor is given back"
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent).replace("\r", "\n")
    assert max(map(len, plain.splitlines())) <= columns
    for shown in ("step 30 of 40", "75%", "tokens/s", "valid loss 7.500", "[fox]", "fox 50%"):
        assert shown in plain, shown
    assert "step 20/40  valid loss 7.5000" in plain, "the line that stays"


def test_training_at_a_terminal_shows_the_panel_and_keeps_stdout_for_results(environment, tmp_path):
    run = tmp_path / "run"
    line = ["-m", "jax_mlm.train", "--steps", "20", "--eval-every", "10", "--out", str(run)]
    line += [word for name, size in BRIEF.items() for word in (f"--{name.replace('_', '-')}", str(size))]
    sent, printed = seen_at_terminal(100, *line, **environment)
    for shown in ("╭", "step 20 of 20", "[creates]", "valid loss", "step 10/20"):
        assert shown in sent, shown
    assert sent.rstrip().endswith("\x1b[?25h")
    assert printed.splitlines()[-1] == str(run)
    assert "\x1b" not in printed
    assert [evaluation["step"] for evaluation in read_samples(run)] == [10, 20]


@pytest.mark.parametrize(("environment", "watched"), [({}, True), ({"TERM": "dumb"}, False), ({"CI": "true"}, False)])
def test_a_dumb_terminal_and_a_terminal_of_ci_are_not_drawn_on(monkeypatch, environment, watched):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for name, value in {"TERM": "xterm", "CI": "", **environment}.items():
        monkeypatch.setenv(name, value)
    assert at_terminal() == watched


def test_the_mean_that_is_shown_starts_unbiased_and_follows():
    mean = ExponentialMean()
    assert mean.add(8.0) == pytest.approx(8.0)
    assert [mean.add(8.0) for _ in range(3)] == pytest.approx([8.0] * 3)
    assert 2.0 < mean.add(2.0) < 8.0
    assert [mean.add(2.0) for _ in range(60)][-1] == pytest.approx(2.0, abs=1e-3)


def test_parts_of_the_panel_by_hand():
    assert spark([3, 2, 1], 8) == "█▅▁" or spark([3, 2, 1], 8) == "█▄▁"
    assert spark([1.0], 8) == ""
    assert len(spark(list(range(1000)), 24)) == 24
    assert [duration(s) for s in (7, 187, 7500, 200_000)] == ["7 s", "3:07 min", "2:05 h", "2.3 days"]
    assert clipped("abcdef", 4) == "abc…"
    long = Answer("", "word", 0.0, (), ("before " * 20, " after" * 20))
    before, gap, after = gapped(long, 40)
    assert len(before + gap + after) == 40
    assert gap == "[word]"
    assert before.endswith("before ")
    assert after.startswith(" after")
    short = Answer("", "word", 0.0, (), ("a ", " b"))
    assert gapped(short, 40) == ("a ", "[word]", " b")
