"""Help where one is: every page fits and shows its options and examples, every slip gets the right word back."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module

import pytest
from support.paths import ROOT
from support.texts import slips

from jax_mlm import __main__ as entry
from jax_mlm import compare, evaluate, finetune, plan
from jax_mlm.cli.options import build, keys_of
from jax_mlm.config import MaskConfig, OptimConfig, TrainConfig
from jax_mlm.errors import UserError
from jax_mlm.hf import __main__ as hf
from jax_mlm.presets import PRESETS
from jax_mlm.tasks.masking import RULES, slots
from jax_mlm.train import options
from jax_mlm.train.__main__ import COMMAND
from jax_mlm.train.optim import OPTIMIZERS, make_optimizer

COMMANDS = {
    "train": COMMAND,
    "evaluate": evaluate.COMMAND,
    "compare": compare.COMMAND,
    "finetune": finetune.COMMAND,
    "plan": plan.COMMAND,
    **{f"hf {name}": command for name, command in hf.COMMANDS.items()},
}
POSITIONALS = {"evaluate": ["a"], "compare": ["a"], "hf import": ["a", "b"], "hf export": ["a", "b"]}


def options_of(name):
    return [action for action in COMMANDS[name].parser()._actions if action.option_strings]


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_page_fits_and_shows_every_option_and_two_examples(name, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    command = COMMANDS[name]
    page = command.page(everything=True)
    assert len(re.findall(rf"^  python -m jax_mlm\.{name}", page, re.M)) >= 2
    ours = page.replace(command.examples, "")
    assert max(map(len, ours.splitlines())) <= min(columns, 100)
    for action in command.parser()._actions:
        shown = ", ".join(action.option_strings) or action.metavar
        assert re.search(rf"^  {re.escape(shown)}(?![\w-])", ours, re.M), shown
        assert action.help, f"{shown} has no words"


def test_the_page_of_training_is_short_and_grouped_and_the_other_complete(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    argv = ["--preset", "small"]
    short, full = COMMAND.page(argv), COMMAND.page(argv, everything=True)
    assert len(short.splitlines()) <= 90
    assert all(f"\n{title}:\n" in short for title in options.GROUPS)
    assert "--help-all" in short
    assert "--rope-theta" not in short
    for action in options_of("train"):
        assert len(re.findall(rf"^  {', '.join(action.option_strings)}(?![\w-])", full, re.M)) == 1, action
    assert "(512)" in full, "the defaults are those of the preset: width 512"


def test_choices_that_are_read_from_a_table_are_its_keys():
    assert keys_of("jax_mlm.tasks.masking.RULES") == tuple(RULES)
    assert keys_of("jax_mlm.train.optim.OPTIMIZERS") == tuple(OPTIMIZERS)
    parser = COMMAND.parser()
    assert {action.dest: tuple(action.choices) for action in parser._actions if action.dest == "mask_rule"} == {
        "mask_rule": tuple(RULES)
    }
    for refused in (lambda: slots(MaskConfig("spam"), 8), lambda: make_optimizer(OptimConfig("spam"))):
        with pytest.raises(UserError, match=r"^--[\w-]+ spam: choose \w+, [\w-]+ or \w+"):
            refused()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_misspelt_option_and_choice_is_recognised(name):
    parser, given = COMMANDS[name].parser(), POSITIONALS.get(name, [])
    names = {word for action in options_of(name) for word in action.option_strings}
    for action in options_of(name):
        for word in (word for word in action.option_strings if word.startswith("--")):
            if not action.choices:
                parser.read([*given, word, *(["1"] if action.nargs != 0 else [])])
            for wrong in set(slips(word)) - names:
                with pytest.raises(UserError, match=r"did you mean --[\w-]+\?") as raised:
                    parser.read([*given, wrong, "1"])
                assert str(raised.value).startswith(f"unknown option {wrong};")
            for choice in filter(None, action.choices or ()):
                assert parser.read([*given, f"{word}={choice}"])[action.dest] == choice
                for wrong in (w for w in slips(choice) if w not in action.choices and len(choice) > 3):
                    with pytest.raises(UserError, match=rf"{word} {wrong}: choose .* or .*; did you mean"):
                        parser.read([*given, word, wrong])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--data"], "--data expected at least one argument"),
        (["--width", "--layers", "3"], "--width expected one argument"),
        (["--width", "3.5"], "--width 3.5: expected an integer"),
        (["--lr=fast"], "--lr fast: expected a number"),
        (["--eval_evry", "3"], "unknown option --eval_evry; did you mean --eval-every?"),
        (["--zzz"], "unknown option --zzz (see python -m jax_mlm.train --help)"),
        (["stray"], "unrecognized arguments: stray (see python -m jax_mlm.train --help)"),
        (["--resume=true"], "--resume/--no-resume ignored explicit argument 'true'"),
        (["--width", "30", "--heads", "4"], "--width 30 is not a multiple of --heads 4"),
    ],
)
def test_what_is_wrong_and_what_to_write_instead(argv, said):
    with pytest.raises(UserError) as raised:
        COMMAND.read(argv)
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("name", "argv", "missing"),
    [
        ("evaluate", ["--json"], "RUN"),
        ("compare", [], "RUN …"),
        ("hf import", [], "HF_DIR, RUN"),
        ("hf import", ["model"], "RUN"),
        ("hf export", ["run"], "HF_DIR"),
    ],
)
def test_what_is_missing_is_named(name, argv, missing):
    with pytest.raises(UserError) as raised:
        COMMANDS[name].read(argv)
    assert str(raised.value) == f"the following arguments are required: {missing} (see python -m jax_mlm.{name} --help)"


def test_right_command_lines_are_left_alone():
    argv = ["--mask-rate-end", "-1", "--data", "a", "b", "--eval_every=7", "--no-gated", "--resume", "--lr", "1e-3"]
    config = COMMAND.read([*argv, "--preset", "tiny"])
    assert (config.data, config.eval_every, config.model.gated, config.resume) == (("a", "b"), 7, False, True)
    assert (config.mask.mask_rate_end, config.optim.lr, config.optim.optimizer) == (-1, 1e-3, "muon")
    given = COMMAND.parser().read(["--mask-rate-end", "-1e-3", "--data", "a", "--data", "c", "--width=8", "--width=32"])
    assert build(TrainConfig, given).mask.mask_rate_end == -1e-3
    assert (given["data"], given["width"]) == (("c",), 32), "the last one counts"


def test_a_misspelt_preset_suggests_the_nearest():
    for preset in PRESETS:
        with pytest.raises(UserError, match=f"; did you mean {preset}"):
            COMMAND.read(["--preset", preset[:-1]])


def test_help_and_a_mistake_come_before_jax_the_hosts_and_the_run():
    code = """
import sys
from jax_mlm.__main__ import main
for asked in ("--help", "-h", "--help-all", "--version"):
    for more in (["--multi-host"], ["--data", "x"], ["--resume", "--out", "no"], ["--preset", "nope"], ["--widht"]):
        assert main(["train", asked, *more]) == main(["train", *more, asked]) == 0, more
for command in (["evaluate"], ["compare"], ["plan"], ["finetune"], ["hf"], ["hf", "import"], ["hf", "export"]):
    assert main([*command, "--help"]) == 0, command
assert main(["train", "--multi-host", "--widht", "3"]) == main(["train", "--preset", "tinny"]) == 2
sys.exit("jax was imported" if "jax" in sys.modules else 0)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (0, 2), done.stderr


@pytest.mark.parametrize(("folder", "script"), [(".", "jax-mlm"), ("export", "mlm-onnx")])
def test_the_console_scripts_are_the_modules_own_commands(folder, script, capsys):
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    module, function = project["scripts"][script].split(":")
    assert module == f"{script.replace('-', '_')}.__main__"
    assert getattr(import_module(module), function)(["--version"]) == 0
    assert capsys.readouterr().out.startswith(script.replace("-", "_"))


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
        assert f"did you mean {name}?" in capsys.readouterr().err
    assert entry.main(["--version"]) == 0
    assert re.fullmatch(r"jax_mlm \S.*, jax [\d.]+\n", capsys.readouterr().out)
    assert hf.main([]) == 0
    assert "import HF_DIR RUN" in capsys.readouterr().out
    assert hf.main(["imprt"]) == 2
    assert "did you mean import?" in capsys.readouterr().err


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
