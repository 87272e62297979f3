"""What `convert --for web` writes, and where the page's runtime comes from: npm once, the cache, or a folder."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from mlm_onnx.__main__ import main
from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.convert import web
from mlm_onnx.convert.quantize import INT8, INT8_WEB
from mlm_onnx.convert.targets import fill_mask_graph
from support.bundles import fast_side
from support.models import CONFIGS, randomised


@pytest.mark.parametrize(("page", "own_parts"), [("fill", {"pieces.js"}), ("tasks", {"answers.js", "offsets.js"})])
def test_the_page_carries_its_parts_and_asks_nobody_else(
    page: Literal["fill", "tasks"], own_parts: set[str], web_runtime: dict[str, bytes], tmp_path: Path
) -> None:
    web.write_page(tmp_path, web_runtime, page)
    beside = tmp_path / web.FOLDER
    names = {file.name for file in beside.iterdir()}
    fetched = {part.name for part in web.PARTS}
    assert fetched < names
    assert all(version in (beside / "NOTICE").read_text() for version in web.VERSIONS.values())
    own = {name: (beside / name).read_text(encoding="utf-8") for name in names - fetched}
    own["index.html"] = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert sum(map(len, own.values())) < 52_000
    assert not [name for name, text in own.items() if re.search("https?:", text)]
    loaded = {found for text in own.values() for found in re.findall(r"""['"](?:\./|web/)([\w.]+)['"]""", text)}
    assert {"page.js", "page.css", "model.js", "ort.js", "ort.wasm"} | own_parts <= loaded <= names
    assert names - loaded == {"NOTICE", "tokenizers.LICENSE"}, "nothing lies there that is not needed"


@pytest.mark.parametrize("name", ["modernbert-local", "bert", "untied"])
def test_the_int8_graph_for_wasm_computes_what_the_fast_one_does(name: str, tmp_path: Path) -> None:
    config = replace(CONFIGS[name], width=48)  # three blocks a row of the table
    params = randomised(config)
    fill_mask_graph(config, params, INT8).write(tmp_path / "fast.onnx")
    fill_mask_graph(config, params, INT8_WEB).write_sharing(tmp_path / "web.onnx", tmp_path / "fast.onnx")
    fast, wasm = fast_side(tmp_path / "fast.onnx"), fast_side(tmp_path / "web.onnx")
    rng = np.random.default_rng(0)
    for rows, length, masks in ((1, 1, 1), (1, 18, 1), (3, 18, 5), (2, 48, 30)):
        ids, at = rng.integers(0, 96, (rows, length)), rng.integers(0, length, (rows, masks))
        expected = fast(ids, at)
        assert expected.std() > 1
        np.testing.assert_allclose(wasm(ids, at), expected, atol=1e-4)


def test_npm_is_not_needed_twice(
    web_runtime: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_MLM_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(BundleError, match=r"needs npm once, to fetch onnxruntime-web@.*--web-runtime DIR"):
        web.find_runtime()
    for package, version in web.VERSIONS.items():
        folder = web.cache_folder() / f"{package.replace('/', '+')}-{version}"
        folder.mkdir(parents=True)
        for part in web.PARTS:
            if part.package == package:
                (folder / part.name).write_bytes(web_runtime[part.name])
    assert web.find_runtime() == web_runtime
    next(web.cache_folder().glob("*/ort.js")).write_bytes(b"changed")
    with pytest.raises(BundleError, match="needs npm"):
        web.find_runtime()


@pytest.mark.skipif(not shutil.which("npm"), reason="needs npm")
def test_without_a_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_MLM_CACHE", str(tmp_path / "cache"))
    for name, value in {"registry": "http://127.0.0.1:9", "fetch_retries": "0", "cache": str(tmp_path / "npm")}.items():
        monkeypatch.setenv(f"npm_config_{name}", value)
    with pytest.raises(BundleError, match=r"^npm could not fetch onnxruntime-web@.*ECONNREFUSED.*--web-runtime DIR$"):
        web.find_runtime()
    assert not (tmp_path / "cache").exists()


def test_a_wrong_runtime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"does not contain onnxruntime-web/dist/.*npm install onnxruntime-web@"):
        web.find_runtime(tmp_path)
    for part in web.PARTS:
        (tmp_path / part.package / part.inside).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / part.package / part.inside).write_bytes(b"something else")
    with pytest.raises(BundleError, match=r"is not the file of onnxruntime-web@"):
        web.find_runtime(tmp_path)


def test_the_runtime_is_about_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path), str(tmp_path / "b"), "--web-runtime", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: --web-runtime applies only to the page: add --for web\n"
