"""Two processes joined by gloo, with some simulated devices each, train as one process does, and stop together."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support.runs import TINY, one_line, train_line

from jax_mlm.errors import UserError
from jax_mlm.parallel import hosts
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.log import read_metrics

OPTIONS = [*TINY, "--log-every", "1", "--eval-every", "5", "--valid-fraction", "0.1", "--dtype", "float32"]
PARTS = ["--accumulate", "2", "--dropout", "0.1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Made-up lines of very different lengths, so that the hosts' rows differ in their number of targets."""
    rng = np.random.default_rng(0)
    words = ["river", "stone", "bird", "green", "old", "sees", "follows", "the", "and", "hill"]
    path = tmp_path_factory.mktemp("text") / "made.txt"
    path.write_text("".join(" ".join(rng.choice(words, rng.integers(2, 40))) + "\n" for _ in range(400)))
    return path


def start(environment, *arguments, folders=(None, None), devices: int = 2) -> list[subprocess.Popen]:
    """The command on two hosts, with some devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = {
        **environment,
        "XLA_FLAGS": f"{environment['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        hosts.ADDRESS: address,
        hosts.COUNT: "2",
    }
    line = [sys.executable, "-m", "jax_mlm.train", *map(str, arguments)]
    return [
        subprocess.Popen(
            line,
            env={**joined, hosts.NUMBER: str(number)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, folder in enumerate(folders)
    ]


def finish(processes: list[subprocess.Popen]) -> list[subprocess.CompletedProcess]:
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, without_gloo(out), err)
        for process, (out, err) in zip(processes, said, strict=True)
    ]


GLOO = r"\[Gloo\] Rank |is connected to |peer ranks\. |Expected number of connected peer ranks is : |\d+|\s"


def without_gloo(out: str) -> str:
    """What the command printed: gloo itself prints its connections, piece by piece, so that two of them may mix."""
    return "".join(line for line in out.splitlines(True) if not re.fullmatch(f"({GLOO})*", line))


def test_what_gloo_prints_is_known_in_any_order() -> None:
    whole = "[Gloo] Rank 1 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1\n"
    mixed = (
        "[Gloo] Rank 1 is connected to [Gloo] Rank 1 peer ranks. Expected number of connected peer ranks is : 1\n1\n"
    )
    assert without_gloo(f"{whole}{mixed}runs/tiny\nvalidation, 1 target\n") == "runs/tiny\nvalidation, 1 target\n"


@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_hosts_train_as_one_does_and_stop_together(environment, text, tmp_path, stopped):
    """They end where one process does, also if SIGTERM to one of them made both save one checkpoint on the way.

    Those that are stopped have dropout and microbatches as well, divide the state over all eight devices, and continue
    with a copy of it on each host.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    steps = 20 if stopped else 10  # the signal has to come before the end
    options = [*OPTIONS, *(PARTS if stopped else ()), "--batch", 16 if stopped else 8, "--steps", steps, "--data", text]
    assert train_line(*options, "--out", one) == 0

    devices, mesh = (4, ("--mesh", "fsdp=8")) if stopped else (2, ())
    processes = start(environment, *options, *mesh, "--out", two, devices=devices)
    if stopped:
        began = time.monotonic()
        while not list(two.glob("checkpoints/5*")) and time.monotonic() - began < 90:
            time.sleep(0.005)
        processes[1].send_signal(signal.SIGTERM)
        first, second = finish(processes)
        assert (first.returncode, second.returncode) == (143, 143), (first.stderr, second.stderr)
        assert f"--resume --out {two}" in first.stderr
        assert not second.stdout
        assert 5 <= load_params(two)[0] < steps
        processes = start(environment, "--resume", "--mesh", "data=2,fsdp=2,tensor=2", "--out", two, devices=devices)

    first, second = finish(processes)
    assert (first.returncode, second.returncode) == (0, 0), (first.stderr, second.stderr)
    assert f"{2 * devices} × cpu on 2 hosts" in first.stderr
    assert "parameters" not in second.stderr
    assert first.stdout.splitlines()[-1] == str(two)
    assert not second.stdout
    step, params = load_params(two)
    _, expected = load_params(one)
    assert step == steps
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), params, expected)

    mine, theirs = read_metrics(one), read_metrics(two)
    assert [(line["kind"], line["step"]) for line in mine if line["kind"] != "train"] == [
        (line["kind"], line["step"]) for line in theirs if line["kind"] != "train"
    ]
    for kind in ("train", "valid"):
        losses = [{line["step"]: line["loss"] for line in lines if line["kind"] == kind} for lines in (mine, theirs)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5), kind
    steps = [(line["kind"], line["step"]) for line in theirs]
    assert len(steps) == len(set(steps)), "one host writes the metrics"
    device = json.loads((two / "run.json").read_text())["device"]
    assert (device["devices"], device["hosts"]) == (2 * devices, 2)


@pytest.mark.slow
def test_two_hosts_end_a_budget_together(environment, text, tmp_path):
    run = tmp_path / "run"
    options = [*OPTIONS, "--batch", 8, "--budget", "4s", "--data", text, "--out", run]
    first, second = finish(start(environment, *options))
    assert (first.returncode, second.returncode) == (0, 0), (first.stderr, second.stderr)
    step, _ = load_params(run)
    last = read_metrics(run)[-1]
    assert (last["kind"], last["step"]) == ("final", step)
    assert step > 5
    assert last["seconds"] < 20


@pytest.mark.slow
def test_a_mistake_on_one_host_ends_all_with_one_line(environment, text, tmp_path):
    """Each host has its own working directory here, and only the first one the text: neither waits for the other."""
    here = [tmp_path / name for name in ("first", "second")]
    for folder in here:
        folder.mkdir()
    (here[0] / "own.txt").write_bytes(text.read_bytes())
    first, second = finish(start(environment, *OPTIONS, "--data", "own.txt", "--out", "run", folders=here))
    assert "own.txt" in one_line(second)
    assert first.returncode == 2
    assert "error:" not in first.stderr
    (here[1] / "own.txt").write_text(text.read_text() + "one more line\n")
    first, second = finish(start(environment, *OPTIONS, "--data", "own.txt", "--out", "run", folders=here))
    assert "host 1 has different text" in one_line(first)
    assert second.returncode == 2
    assert not any((folder / "run").exists() for folder in here)


def test_hosts_have_to_be_told_their_number(environment, monkeypatch, tmp_path, capsys):
    line = [sys.executable, "-m", "jax_mlm.train", "--out", str(tmp_path / "run")]
    told = {**environment, hosts.ADDRESS: "localhost:1"}
    done = subprocess.run(line, env=told, capture_output=True, text=True, timeout=60, check=False)
    assert "JAX_NUM_PROCESSES and" in one_line(done)
    monkeypatch.setenv(hosts.ADDRESS, "localhost:1")
    monkeypatch.setenv(hosts.COUNT, "two")
    status = train_line(*line[3:])
    assert "JAX_NUM_PROCESSES is 'two'" in one_line(subprocess.CompletedProcess([], status, *capsys.readouterr()))


def test_one_host_agrees_with_itself():
    assert hosts.gather("a") == ["a"]
    assert hosts.on_every_host(lambda: 3) == 3
    hosts.agree("text", "abc")
    with pytest.raises(UserError, match="mine"):
        hosts.on_every_host(lambda: (_ for _ in ()).throw(UserError("mine")))
