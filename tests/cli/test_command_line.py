"""python -m mlm_onnx: the map, pages that fit, and the nearest word for every slip."""

import re
from dataclasses import replace

import pytest
from mlm_onnx import BundleError, QueryError
from mlm_onnx import __main__ as entry
from mlm_onnx.cli.parser import UsageError, read
from mlm_onnx.convert.parity import ParityError
from support.paths import ROOT
from support.texts import slips


def call(capsys, *arguments) -> tuple[int, str, str]:
    code = entry.main(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err


def page(capsys, name: str) -> str:
    with pytest.raises(SystemExit) as stop:
        entry.main([name, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_map_has_every_command_and_fits(capsys):
    code, out, err = call(capsys)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 90
    for name in entry.COMMANDS:
        assert re.search(rf"^  {name} +\w", out, re.M)
    assert re.fullmatch(r"mlm_onnx \S.*, onnxruntime [\d.]+\n", call(capsys, "--version")[1])


def test_only_a_users_mistake_is_one_line(capsys, monkeypatch):
    """Errors of the user and of the system are; what a defect raises keeps its traceback, whatever its class."""

    def fail_with(error: Exception):
        def run(options):
            raise error

        command = replace(entry.COMMANDS["info"], run=run)
        monkeypatch.setattr(entry, "COMMANDS", {**entry.COMMANDS, "info": command})
        return call(capsys, "info", "b")

    for kind in (BundleError, QueryError, UsageError, ParityError):
        assert fail_with(kind("said\nso")) == (2, "", "error: said so\n")
    assert fail_with(FileNotFoundError(2, "No such file", "b"))[0] == 2
    assert fail_with(OSError(28, "No space left on device"))[0] == 2
    for defect in (ValueError("operands could not be broadcast"), OSError("by hand"), KeyError("x")):
        with pytest.raises(type(defect)):
            fail_with(defect)


@pytest.mark.parametrize("name", list(entry.COMMANDS))
def test_every_page_has_two_examples_and_every_slip_is_recognised(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = page(capsys, name)
    assert len(re.findall(rf"^  python -m mlm_onnx {name} ", shown, re.M)) == 2
    assert max(map(len, shown.splitlines())) <= 80
    known = set(re.findall(r"^  (?:-h, )?(--[a-z][\w-]*)", shown, re.M)) - {"--help"}
    assert known
    for option in known:
        for wrong in set(slips(option)) - known:
            with pytest.raises(UsageError, match=rf"unknown option {wrong}; did you mean --"):
                read(entry.COMMANDS, name, [wrong, "1"])
    code, out, err = call(capsys, name + name[-1])
    assert (code, out) == (2, "")
    assert err == f"error: unknown command {name + name[-1]}; did you mean {name}?\n"


def test_a_wrong_choice_names_the_right_ones(capsys):
    for arguments in (["--dtype", "in8"], ["--dtype=in8"]):
        code, _, err = call(capsys, "convert", "run", "bundle", *arguments)
        assert (code, err) == (2, "error: --dtype in8: choose int8 or fp32; did you mean int8?\n")


def test_info_shows_what_older_bundles_measured_without_vnni(capsys, sentence_bundles):
    code, out, _ = call(capsys, "info", str(ROOT / "tests" / "golden" / "bundle-int8"))
    assert code == 0
    assert "without VNNI 0.80% of the sums of two products are cut off, which changes 8.3% of the first answers" in out
    assert "convert with --reduce-range" in out
    code, out, _ = call(capsys, "info", str(sentence_bundles["int8"]))
    assert code == 0
    assert "VNNI" not in out
