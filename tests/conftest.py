"""Fixtures that several test files need."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from filelock import FileLock
from support import QUICK
from support.bundles import ORIGIN, SENTENCE_MODEL
from support.models import cached_shapes, randomised
from support.paths import ROOT

from jax_mlm.hf import weights
from jax_mlm.parallel.cores import cores
from jax_mlm.train import teacher

if TYPE_CHECKING:
    from playwright.sync_api import Browser


WORKERS = 4
"""Most workers at a time: each takes a gigabyte of memory."""
LONGEST = (
    "train/test_train",
    "parallel",
    "page",
    "docs/test_docs",
    "tasks",
    "faults/test_kills",
    "train",
    "golden",
    "convert",
    "hf",
    "demo",
    "model",
    "faults",
)
"""Folders and files of tests that start first, so that all workers end together; those that need the founding sentence
follow when it is trained."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Distribute the whole suite over the cores, if pytest-xdist is installed and -n is not given."""
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    if whole and not hasattr(config, "workerinput") and config.getoption("numprocesses", 0) is None:
        config.option.numprocesses = min(cores(), WORKERS)
        config.option.dist = "loadfile"  # a file's fixtures are made once
        config.option.maxschedchunk = 1
        config.option.loadscopereorder = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(ROOT / "tests").as_posix()
        return next((at for at, begin in enumerate(LONGEST) if name.startswith(begin)), len(LONGEST))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Leave what is imported out of the garbage collector's walks: a million objects, a twentieth of the whole time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout, or $JAX_MLM_SHARED."""
    named = os.environ.get("JAX_MLM_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; point $JAX_MLM_SHARED at it")
    return folder


@pytest.fixture(scope="session", autouse=True)
def signals_of_a_terminal() -> None:
    """Nothing is ignored, however the suite was started (nohup, a script's background job): children inherit that."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def shapes_once() -> Iterator[None]:
    """Trace the parameters of each configuration once: hundreds of tests read small models of a dozen shapes."""
    with pytest.MonkeyPatch.context() as patch:
        for reader in (weights, teacher):
            patch.setattr(reader, "expected_shapes", cached_shapes)
        yield


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Variables for commands in a process of their own, which share one cache."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "export"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Fill a folder once a session, whatever the number of workers: the others wait, and find it filled."""
    own = tmp_path_factory.getbasetemp()
    base = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, filled = base / name, base / f"{name}.filled"
        with FileLock(base / f"{name}.lock"):
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return make


class SentenceRun(NamedTuple):
    """`python -m jax_mlm.train` without any option."""

    path: Path
    done: subprocess.CompletedProcess


@pytest.fixture(scope="session")
def sentence_run(environment: dict[str, str], once: Callable[..., Path]) -> SentenceRun:
    """The founding sentence, trained once for all tests: to be read, not changed."""
    line = [sys.executable, "-m", "jax_mlm.train"]

    def train(folder: Path) -> None:
        # The only training here that is long enough for optimised code to pay; level 1 runs as fast as 3.
        flags = environment["XLA_FLAGS"]
        env = {
            **environment,
            "XLA_FLAGS": flags.replace(QUICK, "--xla_backend_optimization_level=1") if QUICK else flags,
        }
        done = subprocess.run(line, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        (folder / "printed.json").write_text(json.dumps([done.stdout, done.stderr]))

    folder = once("sentence-run", train)
    done = subprocess.CompletedProcess(line, 0, *json.loads((folder / "printed.json").read_text()))
    return SentenceRun(folder / done.stdout.splitlines()[-1], done)


@pytest.fixture(scope="session")
def trained_bundle(sentence_run: SentenceRun, once: Callable[..., Path]) -> Callable[..., Path]:
    """Bundles of the founding sentence, trained: what `mlm_onnx convert` makes with some options. To be read."""
    from mlm_onnx.__main__ import main

    def make(*options: str) -> Path:
        def convert(folder: Path) -> None:
            assert main(["convert", str(sentence_run.path), str(folder / "bundle"), *options]) == 0

        return once("-".join(["trained", *(option.strip("-") for option in options)]), convert) / "bundle"

    return make


@pytest.fixture(scope="session")
def sentence_bundles(once: Callable[..., Path]) -> dict[str, Path]:
    """Bundles of the founding sentence's shape with random weights, in fp32 and in int8: to be read, not changed."""
    from mlm_onnx.convert import Request, write_bundle
    from support.bundles import ONE_SHAPE

    from jax_mlm.data.tokenizer import train_tokenizer
    from jax_mlm.presets import SENTENCE

    requests = {"fp32": Request("fp32"), "int8": Request("int8"), "attention": Request(with_attention=True)}

    def write(folder: Path) -> None:
        tokenizer, params = train_tokenizer([SENTENCE], "word", 16), randomised(SENTENCE_MODEL)
        for name, request in requests.items():
            write_bundle(folder / name, SENTENCE_MODEL, params, tokenizer, request, ORIGIN, ONE_SHAPE)

    folder = once("sentence-bundles", write)
    return {name: folder / name for name in requests}


@pytest.fixture(scope="session")
def web_runtime() -> dict[str, bytes]:
    """What the page runs on: from the cache, else from npm."""
    from mlm_onnx.bundle.layout import BundleError
    from mlm_onnx.convert import web

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("npm_config_fetch_retries", "0")
        try:
            return web.find_runtime()
        except BundleError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A real Chromium that reaches nothing beyond this machine: $JAX_MLM_CHROMIUM, or one on the path."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive a browser")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("JAX_MLM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on the path; point $JAX_MLM_CHROMIUM at one")
    only_here = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", only_here])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[[Path], str]]:
    """Serve folders as `python -m http.server` does, until the module ends; return the address of each."""
    servers: list[ThreadingHTTPServer] = []

    def start(folder: Path) -> str:
        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *given: Any) -> None:
                super().__init__(*given, directory=str(folder))

            def log_message(self, *_: Any) -> None:
                """Nothing on the tests' stderr."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=[0.02], daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
