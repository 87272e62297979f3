"""Answering works without what only Unix has, and training without what only Linux has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlm_onnx.bundle import BundleError, open_bundle
from support.paths import ROOT

from jax_mlm.train.__main__ import main

BUNDLE = ROOT / "tests" / "golden" / "bundle-int8"
WINDOWS = """
import io, os, signal, sys
for name in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "posix_ipc"):
    sys.modules[name] = None  # to import it fails
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "setitimer", "alarm"):
    delattr(signal, name)
for name in ("fork", "register_at_fork", "sched_getaffinity", "sysconf", "getuid", "geteuid", "mkfifo", "killpg"):
    delattr(os, name)
"""
MACOS = """
import io, os, sys
del os.sched_getaffinity
"""
WITHOUT_PROC = """
opened = io.open
def refuse(file, *rest, **options):
    if isinstance(file, (str, bytes, os.PathLike)) and os.fspath(file).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", file)
    return opened(file, *rest, **options)
io.open = refuse
import builtins
builtins.open = refuse
"""


def elsewhere(platform: str, act: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that lacks what a platform does."""
    return subprocess.run(
        [sys.executable, "-c", platform + WITHOUT_PROC + act, *arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'export'}", **environment},
        capture_output=True, encoding="utf-8", timeout=300, check=False,
    )  # fmt: skip


ANSWER = "from mlm_onnx.__main__ import main; sys.exit(main(sys.argv[1:]))"
CORES = "from jax_mlm.parallel.cores import cores; assert cores() >= 1; "
TRAIN = "from jax_mlm.train.__main__ import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("argv", [["fill", str(BUNDLE), "the old miller [MASK] the door", "--json"],
                                  ["info", str(BUNDLE)]])  # fmt: skip
def test_answers_need_nothing_that_windows_lacks(argv: list[str]) -> None:
    there, here = elsewhere(WINDOWS, ANSWER, *argv), elsewhere("import io, os, sys", ANSWER, *argv)
    assert (there.returncode, here.returncode) == (0, 0), there.stderr
    memory = [line for line in here.stdout.splitlines() if not line.startswith("memory")]
    assert [line for line in there.stdout.splitlines() if not line.startswith("memory")] == memory


def test_a_text_is_utf8_whatever_the_locale() -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = elsewhere("import io, os, sys", ANSWER, "fill", str(BUNDLE), "été [MASK] 字", "--json", **ascii_only)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == "été [MASK] 字"


def test_training_starts_without_what_macos_lacks() -> None:
    done = elsewhere(MACOS, CORES + TRAIN, "--help")
    assert done.returncode == 0, done.stderr
    assert "--data" in done.stdout


@pytest.mark.slow
def test_training_works_without_what_macos_lacks(tmp_path: Path) -> None:
    small = ["--width", "16", "--layers", "1", "--heads", "2", "--ff-width", "16", "--batch", "2", "--steps", "2"]
    done = elsewhere(MACOS, TRAIN, "--preset", "sentence", *small, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


def test_a_path_that_is_not_utf8_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    assert main(["--out", name]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --out ")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleError, match="the path is not UTF-8"):
        open_bundle(name)
