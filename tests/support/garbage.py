"""Bad input: how it is made, and what may come of it - a right result, or one line and nothing left behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import signal
import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from hypothesis import strategies as st

from support.paths import ROOT

RESULT = ROOT / "benchmarks" / "results" / "inputs.json"
COMMAND = "python -m pytest -n 0 -m campaign tests/faults"
SECONDS = 60
"""Seconds of wall time after which a case counts as hanging: a busy machine needs some of them."""


class Outcome(NamedTuple):
    """What came of one case."""

    status: int
    said: str
    """On stderr."""
    printed: str


class Hanging(BaseException):
    """A case took too long."""


class Enough(BaseException):
    """What a command has done so far is enough for a test: it would succeed."""


def attempt(act: Callable[[], int], folder: Path, caches: bool = False) -> Outcome:
    """Run a command in this process, in `folder`; fail unless it ends with 0, or with 2 and one line and no output.

    With `caches`, it may leave a cache there.
    """
    before = tree(folder)
    with run_in(folder), patience(), captured() as (out, err):
        try:
            status = act()
        except Enough:
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
    said = err.getvalue()
    assert status in (0, 2), (status, said)
    assert "Traceback" not in said, said
    if status:
        captured_line(said)
        assert caches or tree(folder) == before, "a refused command left something behind"
    else:
        assert "error:" not in said, said
    return Outcome(status, said, out.getvalue())


def captured_line(said: str) -> str:
    """Return the one line, the last, in which a refused command gives the reason."""
    errors = [line for line in said.split("\n") if line.startswith("error:")]
    assert len(errors) == 1, said
    assert said.endswith(errors[0] + "\n"), said
    assert len(errors[0]) < 2100, "a line that nobody reads"
    return errors[0]


@contextlib.contextmanager
def run_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Give what is written to stdout and stderr meanwhile; lone surrogates fail there as on a terminal."""
    out, err = Terminal(), Terminal()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


class Terminal(io.StringIO):
    """A stream of UTF-8, as commands make of theirs."""

    def write(self, text: str) -> int:
        return super().write(text.encode("utf-8", "backslashreplace").decode())


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Raise Hanging after `SECONDS`; a system call that waits is interrupted."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Hanging

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the kind of each entry below a folder, and what a regular file holds; `cache` is left out."""
    found = {}
    for parent, folders, files in os.walk(folder):
        if parent == str(folder) and "cache" in folders:
            folders.remove("cache")
        for name in (*folders, *files):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            content = path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 20 else b""
            found[os.path.relpath(path, folder)] = (mode, content)
    return found


@contextlib.contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """Give a new folder, removed afterwards."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- damage --------------------------------------------------------------------------------------

PICKLE = pickle.dumps({"weights": [1.0] * 8})


def _zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data.pkl", PICKLE)
    return packed.getvalue()


OTHER = (
    b"",
    b"\0",
    b"\0" * 4096,
    b"\xff" * 4096,
    PICKLE,
    _zip(),
    b"\x1f\x8b" + b"\0" * 40,
    b"{}",
    b"[]",
    b"null",
    b"3",
)
"""What a file may hold instead of what it should."""
RAW = (
    "null", "true", "false", "0", "-1", "1", "3", "2.5", "1e308", "1e400", "-1e400", "NaN", "4294967296",
    "1000000000000", "9223372036854775808", "9" * 4000, "9" * 5000, '""', '"x"', '"../x"', '"/etc/passwd"',
    '"\\ud800"', '"\\u0000"', '"a\\nb"', '"' + "y" * 3000 + '"', "{}", "[]", '{"a": 1}', "[1]", '[["a", 1.0]]',
    "[" * 300 + "]" * 300, "[" * 60000 + "]" * 60000, '{"a":' * 900 + "1" + "}" * 900,
)  # fmt: skip
"""Values of JSON, as they are written, that few fields take."""
ALIKE: Mapping[type, tuple[str, ...]] = {
    bool: ("true", "false"),
    int: ("0", "1", "2", "3", "7", "-1", "40", "65536", "4294967295", "1000000"),
    float: ("0.0", "-1.0", "1e-9", "1e9", "1e400", "2"),
    str: (
        '""',
        '" "',
        '"x"',
        '"[MASK]"',
        '"[UNK]"',
        '"(("',
        '"line"',
        '"relu"',
        '"ByteLevel"',
        '"Metaspace"',
        '"\u00e9"',
    ),
    dict: ("{}", "null"),
    list: ("[]", "[[]]", '["x"]'),
}
"""Values of the same type, which readers look at more closely."""
HOLE = "\ue000hole\ue000"


def paths_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value, of long lists to the first and last ones alone."""
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    entries = list(entries)
    for key, inside in entries if len(entries) < 24 else (*entries[:4], *entries[-4:]):
        yield from paths_of(inside, (*at, key))


@st.composite
def json_damage(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the JSON with up to three of its values changed, left out or added."""
    value = json.loads(content)
    holes = []
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(list(paths_of(value))))
        doing = draw(st.sampled_from(("change", "change", "change", "remove", "add", "double")))
        if not way:
            value, holes = HOLE, [draw(st.sampled_from(RAW))]
            break
        inside = value
        for key in way[:-1]:
            inside = inside[key]
        if doing == "remove":
            del inside[way[-1]]
        elif doing == "double" and isinstance(inside, list):
            inside.append(inside[way[-1]])
        elif doing == "add" and isinstance(inside, dict):
            inside[draw(st.text(max_size=8))] = inside[way[-1]]
        else:
            values = RAW if draw(st.booleans()) else ALIKE.get(type(inside[way[-1]]), RAW)
            inside[way[-1]] = f"{HOLE}{len(holes)}"
            holes.append(draw(st.sampled_from(values)))
    text = json.dumps(value, ensure_ascii=False)
    for number, raw in enumerate(holes):
        text = text.replace(f'"{HOLE}{number}"', raw)
    return text.replace(f'"{HOLE}"', holes[0] if holes else "0").encode("utf-8", "surrogatepass")


@st.composite
def byte_damage(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the bytes cut, flipped, filled, doubled, or others instead."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    some = draw(st.binary(min_size=1, max_size=12))
    return draw(
        st.sampled_from(
            (
                content[:at],
                content[at:],
                content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :] if content else some,
                content[:at] + some + content[at:],
                content[:at] + some + content[at + len(some) :],
                content[:at] + b"\0" * (len(content) - at),
                content + content,
                content + some,
                *OTHER,
            )
        )
    )


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """Damage to a file of JSON: to what it says, or to its bytes."""
    return st.one_of(json_damage(content), json_damage(content), byte_damage(content))


# ---- what is not a file --------------------------------------------------------------------------

NAMES = (
    "plain",
    "two  words",
    "line\nend",
    "-dash",
    "tab\t",
    "quo'te\"",
    "ünï",
    "[a]*?",
    "\udcff\udcfe",
    "~nobody-here/x",
)
"""Odd names of files."""
LONG = "n" * 300
"""Longer than a name may be."""


def strange(folder: Path) -> dict[str, str]:
    """Make what is not a file, or not a sound one; return each by its kind."""
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as unix, run_in(folder):
        unix.bind("socket")
    (folder / "broken").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    (folder / "empty folder").mkdir()
    (folder / "around").mkdir()
    for name in ("one", "two"):
        (folder / "around" / name).symlink_to("..")
    (folder / "dangling").mkdir()
    (folder / "dangling" / "a.txt").symlink_to("nowhere")
    (folder / "empty").write_bytes(b"")
    (folder / "binary").write_bytes(bytes(range(256)) * 8)
    for name in NAMES[:-1]:
        (folder / f"{name}.txt").write_text("a b c\nd e f\n" * 3, encoding="utf-8")
    return {
        "a pipe": "fifo",
        "a socket": "socket",
        "a broken link": "broken",
        "a link to itself": "loop",
        "an empty folder": "empty folder",
        "links round in a circle": "around",
        "a glob in a circle": "around/**/*.txt",
        "a folder with a broken link": "dangling",
        "a glob with a broken link": "dangling/*.txt",
        "an empty file": "empty",
        "a file of bytes": "binary",
        "zeros without end": "/dev/zero",
        "noise without end": "/dev/urandom",
        "nothing": "/dev/null",
        "memory": "/proc/self/mem",
        "a name too long": LONG,
        "a name of nothing": "",
        "below a file": "empty/x",
        **{f"the name {name!r}": name if name.startswith("~") else f"./{name}.txt" for name in NAMES},
    }


# ---- what came of it -----------------------------------------------------------------------------


def recorded() -> dict[str, Any]:
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"command": COMMAND}


def record(part: str, name: str, entry: dict[str, Any]) -> None:
    """Add an entry to the result, at once: a campaign that is stopped goes on where it was."""
    result = recorded()
    result.setdefault(part, {})[name] = entry
    result["cases"] = sum(
        each["accepted"] + each["refused"]
        for part in ("in process", "bundles")
        for each in result.get(part, {}).values()
    )
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
