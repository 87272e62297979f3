"""Help where one is: every page fits and shows its options and examples, every slip gets the right word back."""

import os
import re
import subprocess
import sys

import pytest
from support.paths import ROOT
from support.texts import slips

from jax_mlm import __main__ as entry
from jax_mlm import compare, evaluate
from jax_mlm.cli import console
from jax_mlm.cli.help import check, options_of, render
from jax_mlm.config import TrainConfig
from jax_mlm.errors import UserError
from jax_mlm.hf import __main__ as hf
from jax_mlm.presets import PRESETS
from jax_mlm.train import options

COMMANDS = {
    "train": (TrainConfig, options.EXAMPLES),
    "evaluate": (evaluate.EvaluateConfig, evaluate.EXAMPLES),
    "compare": (compare.CompareConfig, compare.EXAMPLES),
    "hf import": (hf.ImportConfig, hf.IMPORT_EXAMPLES),
    "hf export": (hf.ExportConfig, hf.EXPORT_EXAMPLES),
}


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_page_fits_and_shows_every_option_and_two_examples(name, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    kind, examples = COMMANDS[name]
    page = render(f"python -m jax_mlm.{name}", kind, examples)
    assert len(re.findall(rf"^  python -m jax_mlm\.{name}", page, re.M)) >= 2
    ours = page.replace(examples, "")
    assert max(map(len, ours.splitlines())) <= min(columns, 100)
    for option in options_of(kind):
        assert re.search(rf"^  {re.escape(option.name)}(?![\w-])", ours, re.M), option.name
        assert option.text, f"{option.name} has no words"
    assert "╭" not in page


def test_the_page_of_training_is_short_and_grouped_and_the_other_complete(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ("python -m jax_mlm.train", TrainConfig, options.EXAMPLES, PRESETS["small"], options.GROUPS)
    short, full = render(*arguments), render(*arguments, everything=True)
    assert len(short.splitlines()) <= 90
    assert all(f"\n{title}:\n" in short for title in options.GROUPS)
    assert "--help-all" in short
    assert "--rope-theta" not in short
    names = [option.name for option in options_of(TrainConfig)]
    for name in names:
        assert len(re.findall(rf"^  {name}(?![\w-])", full, re.M)) == 1, name
    assert "(512)" in full, "the defaults are those of the preset: width 512"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_misspelt_option_and_choice_is_recognised(name):
    known = options_of(COMMANDS[name][0])
    names = {option.name for option in known if not option.positional}
    for option in known:
        if option.positional:
            continue
        check("x", known, [option.name, *(["1"] if option.value else [])] if not option.choices else [])
        for wrong in {option.name, *slips(option.name)} - names:
            with pytest.raises(UserError, match=r"Did you mean --[\w-]+\?") as raised:
                check("x", known, [wrong, "1"])
            assert str(raised.value).startswith(f"{wrong} is no option")
        for choice in filter(None, option.choices):
            check("x", known, [f"{option.name}={choice}"])
            for wrong in (w for w in slips(choice) if w not in option.choices and len(choice) > 3):
                with pytest.raises(UserError, match=rf"{option.name} {wrong} is unknown: .* Did you mean"):
                    check("x", known, [option.name, wrong])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--data"], "--data needs a value: --data FILE …"),
        (["--width", "--layers", "3"], "--width needs a value: --width N"),
        (["--width", "3.5"], "--width 3.5: expected a whole number"),
        (["--lr=fast"], "--lr fast: expected a number"),
        (["--eval_evry", "3"], "--eval_evry is no option. Did you mean --eval-every?"),
        (["--zzz"], "python -m x --help lists them"),
        (["stray"], "stray belongs to no option"),
    ],
)
def test_what_is_wrong_and_what_to_write_instead(argv, said):
    with pytest.raises(UserError, match=re.escape(said)):
        console.parse("python -m x", TrainConfig, argv)


@pytest.mark.parametrize(
    ("name", "argv", "missing"),
    [
        ("evaluate", ["--json"], "RUN is missing: the run directory \\(see"),
        ("hf import", [], "HF_DIR is missing"),
        ("hf import", ["model"], "RUN is missing: the run directory to write"),
        ("hf export", ["run"], "HF_DIR is missing"),
    ],
)
def test_what_is_missing_is_named(name, argv, missing):
    with pytest.raises(UserError, match=missing):
        console.parse(f"python -m jax_mlm.{name}", COMMANDS[name][0], argv)


def test_right_command_lines_are_left_alone():
    argv = ["--mask-rate-end", "-1", "--data", "a", "b", "--eval_every=7", "--no-gated", "--resume", "--lr", "1e-3"]
    config = console.parse("x", TrainConfig, argv)
    assert (config.data, config.eval_every, config.model.gated, config.resume) == (("a", "b"), 7, False, True)


def test_a_misspelt_preset_suggests_the_nearest():
    for preset in PRESETS:
        with pytest.raises(UserError, match=f"Did you mean {preset}"):
            options.defaults(["--preset", preset[:-1]])


def call(*arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_map_shows_the_commands_and_a_slip_the_nearest(capsys):
    assert entry.main([]) == 0
    shown = capsys.readouterr().out
    for name in entry.COMMANDS:
        assert re.search(rf"^  {name} ", shown, re.M)
        assert entry.main([name[:-1] + name[-1] * 2]) == 2
        assert f"Did you mean {name}?" in capsys.readouterr().err
    assert entry.main(["--version"]) == 0
    assert re.fullmatch(r"jax_mlm \S.*, jax [\d.]+\n", capsys.readouterr().out)
    assert hf.main([]) == 0
    assert "import HF_DIR RUN" in capsys.readouterr().out
    assert hf.main(["imprt"]) == 2
    assert "Did you mean import?" in capsys.readouterr().err


def test_the_map_is_there_at_once_and_leads_to_the_commands():
    code = "import sys; from jax_mlm import __main__ as m; m.main([]); sys.exit('jax' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, timeout=60)
    done = call("jax_mlm", "compare", "--help")
    assert done.returncode == 0
    assert "usage: python -m jax_mlm.compare" in done.stdout
    done = call("jax_mlm", "compare")
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
