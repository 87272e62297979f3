"""A training command starts itself anew once, so that glibc asks for huge pages; what it was given stays."""

import json
import os
import subprocess
import sys

import pytest

from jax_mlm.cli.huge_pages import VARIABLE, ask_for_huge_pages

SCRIPT = """import json, os, signal, sys
from jax_mlm.cli.huge_pages import ask_for_huge_pages
print(os.getpid(), flush=True)
ask_for_huge_pages()
ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
print(json.dumps([os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.utf8_mode, ignored, sys.stdin.read()]))
"""
glibc = pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="glibc alone has them")


def run(tmp_path, tunables):
    (tmp_path / "a b.py").write_text(SCRIPT)
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    line = ["nohup", sys.executable, "-X", "utf8", "a b.py", "x y", "--z", "\u00e9\n"]
    given = {"cwd": tmp_path, "env": env | ({VARIABLE: tunables} if tunables else {}), "input": "text", "timeout": 60}
    done = subprocess.run(line, text=True, stdout=subprocess.PIPE, check=True, **given)
    *started, found = done.stdout.splitlines()
    return started, json.loads(found)


@glibc
@pytest.mark.parametrize(
    ("before", "after", "starts"),
    [
        (None, "glibc.malloc.hugetlb=1", 2),
        ("glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1", 2),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0", 1),
    ],
)
def test_a_command_starts_once_more_as_the_same_process(tmp_path, before, after, starts):
    started, found = run(tmp_path, before)
    assert started == started[:1] * starts
    assert found == [after, ["x y", "--z", "\u00e9\n"], 1, True, "text"]


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    for confstr in (lambda name: None, lambda name: os.strerror(int(name))):  # musl's answer, and that of macOS
        monkeypatch.setattr(os, "confstr", confstr)
        ask_for_huge_pages()
        assert VARIABLE not in os.environ
