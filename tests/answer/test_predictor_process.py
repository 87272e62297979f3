"""Threads, forked children, bytes on the command line, and what starting up costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlm_onnx import FillMask, QueryError
from mlm_onnx.bundle.layout import BundleError

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def bundle(sentence_bundles: dict[str, Path]) -> Path:
    return sentence_bundles["int8"]


def run(script: str, bundle: Path, timeout: float = 60) -> str:
    """A script with `f`, a loaded FillMask of two threads, that has answered before."""
    start = (
        "import os, sys, threading, time, warnings\nwarnings.simplefilter('ignore')\nfrom mlm_onnx import FillMask\n"
        "f = FillMask(sys.argv[1], threads=2)\nt = 'This [MASK] creates a super [MASK]'\nexpected = f(t)\n"
        "def wait(child):\n    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", start + script, str(bundle)], capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@forks
def test_a_child_that_ends_like_any_program(bundle: Path) -> None:
    """Its end frees what it has: the parent's session too, whose threads it could wait for without end."""
    run(
        "child = os.fork()\n"
        "if child == 0:\n    assert f(t) == expected\n    del f\n    import gc; gc.collect()\n    sys.exit(7)\n"
        "assert wait(child) == 7\nassert f(t) == expected\n",
        bundle,
    )


@forks
def test_a_child_that_never_asks_and_a_grandchild(bundle: Path) -> None:
    run(
        "idle = os.fork()\nif idle == 0:\n    sys.exit(3)\nassert wait(idle) == 3\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    grandchild = os.fork()\n"
        "    if grandchild == 0:\n        sys.exit(0 if f(t) == expected else 1)\n"
        "    assert wait(grandchild) == 0\n    sys.exit(0 if f(t) == expected else 1)\n"
        "assert wait(child) == 0\n",
        bundle,
    )


@forks
def test_forks_while_other_threads_ask(bundle: Path) -> None:
    run(
        "stop = threading.Event()\n"
        "def ask():\n    while not stop.is_set():\n        f(t)\n"
        "threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]\n"
        "for thread in threads:\n    thread.start()\n"
        "for _ in range(8):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n        os._exit(0 if f(t) == expected else 1)\n"
        "    assert wait(child) == 0\n"
        "stop.set()\nfor thread in threads:\n    thread.join()\n",
        bundle,
    )


@forks
def test_a_pool_of_forked_workers(bundle: Path) -> None:
    run(
        "import multiprocessing\n"
        "def ask(text):\n    return f(text)\n"
        "with multiprocessing.get_context('fork').Pool(3) as pool:\n"
        "    assert pool.map(ask, [t] * 12) == [expected] * 12\n"
        "    assert pool.map(f, [t] * 3) == [expected] * 3\n"
        "    pool.close()\n    pool.join()\n",
        bundle,
    )


@forks
def test_threads_of_a_child_open_one_session(bundle: Path) -> None:
    run(
        "child = os.fork()\n"
        "if child == 0:\n"
        "    from mlm_onnx.answer.session import Session\n    opened, real = [], Session._open\n"
        "    def slowly(self):\n        opened.append(1)\n        time.sleep(0.1)\n        return real(self)\n"
        "    Session._open = slowly\n    answers = []\n"
        "    threads = [threading.Thread(target=lambda: answers.append(f(t))) for _ in range(4)]\n"
        "    for thread in threads:\n        thread.start()\n"
        "    for thread in threads:\n        thread.join()\n"
        "    os._exit(0 if answers == [expected] * 4 and len(opened) == 1 else 1)\n"
        "assert wait(child) == 0\n",
        bundle,
    )


def test_threads_may_ask_different_things(bundle: Path) -> None:
    fill = FillMask(bundle, threads=2)
    text = "This [MASK] creates a super [MASK]"
    questions = [
        lambda: fill(text),
        lambda: fill(text, joint=True),
        lambda: fill.score("This model creates a super"),
        lambda: fill.explain(text),
        lambda: fill("a " * 100 + "[MASK]"),
    ]
    expected = [question() for question in questions]
    barrier = threading.Barrier(len(questions))

    def ask(question):
        barrier.wait()
        return [question() for _ in range(5)]

    with ThreadPoolExecutor(len(questions)) as pool:
        for answers, known in zip(pool.map(ask, questions), expected, strict=True):
            assert answers == [known] * 5


# ---- bad input, from outside ------------------------------------------------------------------------


def command(*words: str | bytes | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "mlm_onnx", *words], capture_output=True, timeout=60)


def test_bytes_that_are_not_utf8_are_one_line(bundle: Path) -> None:
    for name, text in (("fill", b"\xff [MASK]"), ("score", b"a \xc3\x28"), ("explain", b"[MASK] \xed\xa0\x80")):
        done = command(name, bundle, text)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr == b"error: the text is not valid UTF-8\n"
    done = command("fill", bundle, b"a [MASK]", b"--targets", b"\xff")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    done = command("fill", b"/nowhere\xff", b"a [MASK]")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


def test_ten_megabytes_are_refused_at_once(bundle: Path) -> None:
    fill = FillMask(bundle, threads=1)
    text = "a [MASK] " * 1_200_000
    for ask in (fill, fill.score, fill.explain):
        with pytest.raises(QueryError, match=r"the text has 10800000 characters; the limit is 1000000"):
            ask(text)
    with pytest.raises(QueryError, match="characters"):
        fill("x" * 10_000_000)


def test_a_text_of_the_largest_size_is_answered(bundle: Path) -> None:
    fill = FillMask(bundle, threads=1)
    text = "a " * 99_996 + " " * 800_000 + "[MASK]"
    (mask,) = fill(text)["masks"]
    assert mask["position"] == 99_996
    assert len(fill.explain(text)["masks"][0]["words"]) == 63
    with pytest.raises(QueryError, match="lower top_k or shorten"):
        fill("[MASK] a " * 100 + "a " * 90_000 + " " * 800_000, top_k=5)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "fast/fill_mask.onnx", "fast/fill_mask.onnx.data"])
def test_a_missing_file_is_named(bundle: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(bundle, tmp_path / "b")
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        FillMask(copy)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads by /proc")
def test_nothing_runs_beside_the_answers(bundle: Path) -> None:
    """No thread that nobody asked for: onnxruntime's telemetry is off, unless its user wants it."""
    script = "import os, sys, time, mlm_onnx; mlm_onnx.FillMask(sys.argv[1], threads=1)('a [MASK]')\n"
    script += "time.sleep(1)\n"  # threads that have ended need a moment to be gone from /proc
    script += "print(len(os.listdir('/proc/self/task')), os.environ['ORT_DISABLE_TELEMETRY'])"
    bare = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    bare["OPENBLAS_NUM_THREADS"] = "1"  # numpy's own threads are not what is counted
    for chosen, expected in (({}, b"1 1\n"), ({"ORT_DISABLE_TELEMETRY": "0"}, b" 0\n")):
        done = subprocess.run(
            [sys.executable, "-c", script, bundle], env=bare | chosen, capture_output=True, timeout=60
        )
        assert done.stdout.endswith(expected), done


def test_threads_are_whole_numbers(bundle: Path) -> None:
    for threads in (0, -1, True, 1.5):
        with pytest.raises(QueryError, match="threads must be at least 1"):
            FillMask(bundle, threads=threads)  # type: ignore[arg-type]


# ---- start-up ---------------------------------------------------------------------------------------


def test_an_answer_loads_only_what_it_needs(bundle: Path) -> None:
    """Modules of this package too: those for joint answers, explanations and conversion load only when used."""
    loaded = run("print(*sorted(name for name in sys.modules if name.startswith('mlm_onnx')))", bundle).split()
    rooms = {
        "answer": ("answers", "engine", "pieces", "predictor", "queries", "reader", "session", "words"),
        "bundle": ("background", "graph_check", "layout", "read", "wire"),
    }
    inside = [f"mlm_onnx.{room}.{name}" for room, names in rooms.items() for name in names]
    assert loaded == sorted(["mlm_onnx", *(f"mlm_onnx.{room}" for room in rooms), *inside])
    listed = "import sys; had = {*sys.modules}; import mlm_onnx.__main__, mlm_onnx.bundle; print(*{*sys.modules} - had)"
    done = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True, timeout=60)
    slow = {"numpy", "importlib.metadata", "email", "socket", "tempfile", "shutil", "random"}
    assert "mlm_onnx.bundle" in done.stdout.split()
    assert not slow & set(done.stdout.split())
