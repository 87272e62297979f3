"""What several test files need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support.bundles import ORIGIN, SENTENCE_MODEL
from support.models import randomised
from support.paths import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout, or $JAX_MLM_SHARED."""
    named = os.environ.get("JAX_MLM_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; point $JAX_MLM_SHARED at it")
    return folder


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables for commands in a process of their own, which share one cache."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "export"), *filter(None, [os.environ.get("PYTHONPATH")])])
    cache = str(tmp_path_factory.mktemp("cache"))
    return {**os.environ, "JAX_MLM_CACHE": cache, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}


class SentenceRun(NamedTuple):
    """`python -m jax_mlm.train` without any option."""

    path: Path
    done: subprocess.CompletedProcess


@pytest.fixture(scope="session")
def sentence_run(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> SentenceRun:
    """The founding sentence, trained once for all tests: to be read, not changed."""
    folder = tmp_path_factory.mktemp("trained")
    line = [sys.executable, "-m", "jax_mlm.train"]
    done = subprocess.run(line, env=environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return SentenceRun(folder / done.stdout.splitlines()[-1], done)


@pytest.fixture(scope="session")
def sentence_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of the founding sentence's shape with random weights, in fp32 and in int8: to be read, not changed."""
    from mlm_onnx.convert import Request, write_bundle
    from support.bundles import ONE_SHAPE

    from jax_mlm.data.tokenizer import train_tokenizer
    from jax_mlm.presets import SENTENCE

    folder = tmp_path_factory.mktemp("bundles")
    tokenizer = train_tokenizer([SENTENCE], "word", 16)
    requests = {"fp32": Request("fp32"), "int8": Request("int8"), "attention": Request(with_attention=True)}
    for name, request in requests.items():
        write_bundle(folder / name, SENTENCE_MODEL, randomised(SENTENCE_MODEL), tokenizer, request, ORIGIN, ONE_SHAPE)
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


@pytest.fixture(scope="module")
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
    """Serves folders as `python -m http.server` does, until the module's end; gives each one's address."""
    servers: list[ThreadingHTTPServer] = []

    def start(folder: Path) -> str:
        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *given: Any) -> None:
                super().__init__(*given, directory=str(folder))

            def log_message(self, *_: Any) -> None:
                """Nothing on the tests' stderr."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
