"""The command: the founding sentence, real text, an exact resume, and bad input."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support.runs import TINY, one_line, train_line

from jax_mlm.data.tokenizer import load_tokenizer, vocabulary_of
from jax_mlm.evals.scoring import predict_each
from jax_mlm.model.heads import make_forward
from jax_mlm.presets import SENTENCE
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import read_run
from jax_mlm.run.log import read_metrics, read_samples


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Made-up sentences with some structure: 400 lines."""
    rng = np.random.default_rng(0)
    subjects, verbs = ["the red fox", "a tall man", "my old dog", "this bird"], ["sees", "hears", "follows", "likes"]
    things = ["apples", "rivers", "stones", "the moon", "green hills"]
    pick = lambda words: words[rng.integers(len(words))]  # noqa: E731
    path = tmp_path_factory.mktemp("text") / "made.txt"
    path.write_text("".join(f"{pick(subjects)} {pick(verbs)} {pick(things)} and {pick(things)}.\n" for _ in range(400)))
    return path


def command(environment, *arguments, cwd=None) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "jax_mlm.train", *map(str, arguments)]
    return subprocess.run(line, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_the_founding_sentence(sentence_run):
    run, done = sentence_run
    assert run.parts[-2:] == ("runs", "sentence")
    assert done.stdout.count(" right") == 13
    assert "learned by heart" in done.stdout
    assert "backend cpu" in done.stderr
    config = read_run(run)
    assert (config.model.vocab_size, config.model.width, config.model.layers, config.model.heads) == (16, 128, 3, 4)
    tokenizer = load_tokenizer(run / "tokenizer.json")
    _, params = load_params(run)
    answers = predict_each(make_forward(config.model), params, tokenizer, vocabulary_of(tokenizer), SENTENCE)
    assert [a.hidden for a in answers] == SENTENCE.split()
    assert all(a.right and a.candidates[0][1] >= 0.98 for a in answers)
    assert {p.name for p in (run / "plots").iterdir()} == {"loss.svg", "accuracy.svg", "learning_rate.svg"}
    kinds = {line["kind"] for line in read_metrics(run)}
    assert kinds == {"train", "valid", "final"}


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.slow if seed < 3 else pytest.mark.campaign) for seed in range(1, 10)]
)
def test_the_founding_sentence_at_every_seed(environment, tmp_path, seed):
    done = command(environment, "--seed", seed, cwd=tmp_path)
    assert done.stdout.count(" right") == 13, done.stdout
    run = tmp_path / "runs" / "sentence"
    config, tokenizer = read_run(run), load_tokenizer(run / "tokenizer.json")
    _, params = load_params(run)
    answers = predict_each(make_forward(config.model), params, tokenizer, vocabulary_of(tokenizer), SENTENCE)
    assert min(a.candidates[0][1] for a in answers if a.right) >= 0.98


def test_own_text_learns_beyond_the_unigram_baseline(text, tmp_path, capsys):
    assert train_line(*TINY, "--data", text, "--steps", 300, "--eval-every", 100, "--out", tmp_path / "run") == 0
    final = read_metrics(tmp_path / "run")[-1]
    baseline = float(capsys.readouterr().out.split("unigram baseline   loss ")[1].split()[0])
    assert final["kind"] == "final"
    assert final["loss"] < 0.85 * baseline
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert lines[-1]["lr"] < 0.05 * max(line["lr"] for line in lines), "the learning rate has decayed"
    assert f"{final['loss']:.4f}" in (tmp_path / "run" / "report.html").read_text()
    evaluations = read_samples(tmp_path / "run")
    valid = [line["step"] for line in read_metrics(tmp_path / "run") if line["kind"] == "valid"]
    assert [evaluation["step"] for evaluation in evaluations] == valid
    asked = [[(s["text"], s["right"]) for s in evaluation["samples"]] for evaluation in evaluations]
    assert len(asked[0]) == 4
    assert asked == [asked[0]] * len(asked), "the same sentences at every evaluation"
    sure = [sum(s["probability"] for s in evaluation["samples"]) for evaluation in evaluations]
    assert sure[-1] > sure[0], "it learns them, and one sees it"


def same_params(a: Path, b: Path) -> bool:
    (step_a, params_a), (step_b, params_b) = load_params(a), load_params(b)
    leaves = zip(jax.tree.leaves(params_a), jax.tree.leaves(params_b), strict=True)
    return step_a == step_b and all((x == y).all() for x, y in leaves)


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory) -> tuple[list, Path]:
    """The options of a run that others are cut off in, and the run."""
    options = [*TINY, "--data", text, "--steps", 120, "--eval-every", 20, "--dropout", 0.1]
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train_line(*options, "--out", run) == 0
    return options, run


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed_and_resumed_is_bitwise_the_same(environment, uninterrupted, tmp_path, how):
    (options, whole), parts = uninterrupted, tmp_path / "parts"
    process = subprocess.Popen(
        [sys.executable, "-m", "jax_mlm.train", *map(str, options), "--out", str(parts)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    began = time.monotonic()
    while not list(parts.glob("checkpoints/[2468]0*")) and time.monotonic() - began < 120:
        time.sleep(0.002)  # a save is under way, or has just ended
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    if how == signal.SIGTERM:
        assert process.returncode == 130
        assert f"--resume --out {parts}" in errors
    again = command(environment, "--resume", "--out", parts)  # from the start, where no save had ended
    assert again.returncode == 0, again.stderr
    assert same_params(whole, parts)
    steps = [(line["kind"], line["step"]) for line in read_metrics(parts)]
    assert len(steps) == len(set(steps)), "no line twice"
    finals = [[line for line in read_metrics(run) if line["kind"] == "final"] for run in (whole, parts)]
    assert finals[0][0]["loss"] == finals[1][0]["loss"]
    assert read_samples(parts) == read_samples(whole)


@pytest.mark.slow
def test_a_budget_is_kept(environment, text, tmp_path):
    """On a real clock, and shortly: the law is that of test_horizon.py, on a clock of its own."""
    done = command(environment, *TINY, "--data", text, "--budget", "6s", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    metrics = read_metrics(tmp_path / "run")
    assert abs(metrics[-1]["seconds"] - 6) < 1.5, "short runs are dominated by saves: 2 % holds from minutes on"
    assert [line["lr"] for line in metrics if line["kind"] == "train"][-1] < 2e-4


def test_bad_input_is_one_line_and_exit_2(environment, text, tmp_path, capsys):
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"good line\nbad \xff byte\n")
    (tmp_path / "empty.txt").touch()
    (few := tmp_path / "few.txt").write_text("two words\nmore")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious.txt").write_text("mine")
    out = ["--out", tmp_path / "run"]
    cases = [
        (["--preset", "tinny"], "did you mean tiny?"),
        (["--data", tmp_path / "nowhere.txt"], "nowhere.txt"),
        (["--data", tmp_path / "empty.txt"], "empty.txt"),
        (["--data", broken, *TINY], "broken.txt"),
        (["--data", text, "--tokenizer-size", 30_000], "--tokenizer-size"),
        (["--data", text, "--out", tmp_path / "taken"], "--resume"),
        (["--data", text, "--budget", "soon"], "--budget"),
        (["--resume", "--out", tmp_path / "none"], "not a run directory"),
        (["--out", broken / "run", "--steps", 1], "--out"),
        (["--data", text, "--cache", broken / "cache"], "--cache"),
        (["--data", few], "--tokenizer-kind word"),
    ]
    for arguments, named in cases:
        status = train_line(*(arguments if "--out" in arguments else [*arguments, *out]))
        line = one_line(subprocess.CompletedProcess(arguments, status, *capsys.readouterr()))
        assert named in line, line
        assert not (tmp_path / "run").exists(), arguments
    assert (tmp_path / "taken" / "precious.txt").read_text() == "mine"
    assert "nowhere.txt" in one_line(command(environment, "--data", tmp_path / "nowhere.txt", *out))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--widht", "32"], "width"), (["--width", "thirty"], "--width"), (["--width", "30", "--heads", "4"], "--heads")],
)
def test_bad_options_name_the_option(arguments, named, capsys):
    assert train_line(*arguments) == 2
    said = capsys.readouterr().err
    assert named in said
    assert "Traceback" not in said
