"""Make the README's screenshots from the founding sentence, freshly trained: `python docs/tools/screenshots.py`.

It needs what the tests need: playwright, gradio and a Chromium on the path, or at $JAX_MLM_CHROMIUM. A new picture is a
function and a line of SHOTS.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).resolve().parents[1]
WIDTH, SHARPNESS = 860, 1.5
"""Width of a picture in CSS pixels, and its pixels for each of them."""


def demo(run: Path, work: Path, browser: Browser) -> bytes:
    """`python -m mlm_onnx demo`, two words hidden, down to the explanation."""
    bundle, port = work / "demo", _free_port()
    _python("mlm_onnx", "convert", run, bundle, "--with-attention")
    line = [sys.executable, "-m", "mlm_onnx", "demo", str(bundle), "--port", str(port)]
    with _serving(line, port):
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, device_scale_factor=SHARPNESS)
        page.goto(f"http://127.0.0.1:{port}/")
        page.click(".chip[data-position='5']")
        page.wait_for_selector("#why section:nth-of-type(2) .said")
        end = page.locator("#why").bounding_box()
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": end["y"] + end["height"] + 16}
        return page.screenshot(full_page=True, clip=clip)


def web(run: Path, work: Path, browser: Browser) -> bytes:
    """The page of `convert --for web`, served as it is, two words hidden."""
    bundle, port = work / "web", _free_port()
    _python("mlm_onnx", "convert", run, bundle, "--for", "web")
    line = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(bundle)]
    with _serving(line, port):
        page = browser.new_page(viewport={"width": WIDTH, "height": 700}, device_scale_factor=SHARPNESS)
        page.goto(f"http://127.0.0.1:{port}/")
        page.click("#words button:nth-of-type(7)")
        page.wait_for_selector("#answers .card:nth-of-type(2)")
        return page.screenshot(full_page=True)


SHOTS: Mapping[str, Callable[[Path, Path, Browser], bytes]] = {"demo": demo, "web": web}
"""(run directory, a folder to work in, browser) → PNG; written to docs/ under its name."""


def _python(module: str, *arguments: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def _serving(line: list[str], port: int, seconds: float = 60) -> Iterator[None]:
    """Run a server in a process of its own; enter once it answers."""
    server, until = subprocess.Popen(line, stdout=subprocess.DEVNULL), time.monotonic() + seconds
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=seconds).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(SHOTS), help="one of them (default: all)")
    parser.add_argument("--run", type=Path, help="a trained run of the founding sentence, instead of a new one")
    options = parser.parse_args()
    program = os.environ.get("JAX_MLM_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        work = Path(folder)
        run = options.run or work / "run"
        if options.run is None:
            _python("jax_mlm.train", "--out", run)
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name in [options.only] if options.only else SHOTS:
            (DOCS / f"{name}.png").write_bytes(SHOTS[name](run, work, browser))
            print(DOCS / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
