"""A run becomes a bundle only when its graph computes what the JAX model computes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlm_onnx import FillMask
from mlm_onnx.__main__ import main
from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.bundle.read import open_bundle
from mlm_onnx.convert import heads, quantize
from mlm_onnx.convert import pipeline as convert
from mlm_onnx.convert.parity import LOGITS, ParityError
from mlm_onnx.convert.pipeline import write_bundle
from mlm_onnx.convert.request import Request
from mlm_onnx.convert.targets import FILL_MASK
from support.bundles import ORIGIN, SENTENCE_MODEL
from support.models import CONFIGS, randomised

from jax_mlm.config import ModelConfig
from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.hf.config import hf_config
from jax_mlm.presets import PRESETS, SENTENCE

CONFIG = replace(PRESETS["sentence"], model=SENTENCE_MODEL)


def test_convert_takes_the_best_checkpoint(
    two_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(two_checkpoints), str(tmp_path / "b"), "--dtype", "fp32"]) == 0
    assert "largest difference from JAX" in capsys.readouterr().out
    opened = open_bundle(tmp_path / "b")
    assert opened.manifest["origin"]["step"] == 3
    assert opened.manifest["parity"]["fp32"]["max_difference"] <= 1e-4
    assert FillMask(tmp_path / "b")("This [MASK] a")["masks"][0]["candidates"]


def test_int8_is_the_default_and_replaces_a_bundle(two_checkpoints: Path, tmp_path: Path) -> None:
    convert.convert(two_checkpoints, tmp_path / "b", Request("fp32"))
    assert main(["convert", str(two_checkpoints), str(tmp_path / "b")]) == 0
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest["dtype"] == "int8"
    assert manifest["parity"]["fp32"]["max_difference"] <= 1e-4 < manifest["parity"]["int8"]["max_difference"]
    fill = FillMask(tmp_path / "b")
    texts = ["This [MASK] a", "a [MASK] super", "This model [MASK] a super"]
    assert fill(texts) == [fill(text) for text in texts], "int8 scales must not span texts"


@pytest.mark.parametrize("missing", ["run.json", "tokenizer.json", "checkpoints"])
def test_a_run_without_its_parts(
    two_checkpoints: Path, tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "run"
    part.mkdir()
    for name in {"run.json", "tokenizer.json", "checkpoints"} - {missing}:
        (part / name).symlink_to(two_checkpoints / name)
    assert main(["convert", str(part), str(tmp_path / "b")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_a_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: ModelConfig, *rest: Any) -> Any:
        return FILL_MASK.build(replace(model, activation="gelu_tanh"), *rest)

    monkeypatch.setattr(heads, "TARGETS", (replace(FILL_MASK, build=wrong),))
    tokenizer = train_tokenizer([SENTENCE], "word", 16)
    with pytest.raises(ParityError, match="nothing was written"):
        write_bundle(tmp_path / "b", CONFIG.model, randomised(CONFIG.model), tokenizer, Request("fp32"), ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    params = randomised(CONFIG.model)
    params["layer_1"]["mlp"]["up"]["kernel"][3, 4] = np.nan
    with pytest.raises(BundleError, match=r"layer_1\.mlp\.up\.kernel"):
        write_bundle(tmp_path / "b", CONFIG.model, params, train_tokenizer([SENTENCE], "word", 16), Request(), ORIGIN)
    assert list(tmp_path.iterdir()) == []


def test_int8_that_ruins_the_answers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "quantize_columns", _coarse)
    tokenizer = train_tokenizer([SENTENCE], "word", 16)
    with pytest.raises(ParityError, match="use --dtype fp32"):
        write_bundle(tmp_path / "b", CONFIG.model, randomised(CONFIG.model), tokenizer, Request(), ORIGIN)
    assert list(tmp_path.iterdir()) == []


def _coarse(kernel: np.ndarray, largest: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """One bit."""
    return np.sign(kernel).astype(np.int8), np.abs(kernel).mean(axis=0)


def test_nan_never_passes_the_comparison() -> None:
    def zeros(input_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return np.zeros((*positions.shape, 8), np.float32)

    parity = LOGITS.compare(zeros, lambda **query: zeros(**query) * np.nan, 8, ((1, 4, 2),))
    assert not parity.max_difference <= 1e-4


@pytest.mark.parametrize("longest", [1, 2, 17, 64, 512])
def test_shapes_fit_the_model(longest: int) -> None:
    shapes = LOGITS.shapes(longest)
    assert max(length for _, length, _ in shapes) == longest
    assert all(positions <= length for _, length, positions in shapes)


def test_the_founding_files_are_hugging_faces(two_checkpoints: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([SENTENCE], "word", 16)
    write_bundle(tmp_path / "b", CONFIG.model, randomised(CONFIG.model), tokenizer, Request("fp32"), ORIGIN)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("modernbert", ["ModernBertForMaskedLM"])
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())["mask_token"] == "[MASK]"


@pytest.mark.parametrize("name", ["modernbert-local", "every-bias", "bert", "roberta", "distilbert", "albert", "esm"])
def test_transformers_reads_the_config_back(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = CONFIGS[name]
    written = hf_config(config, pad=0, cls=None, sep=None)
    read = transformers.AutoConfig.for_model(**written)
    assert read.model_type == config.family
    assert (read.num_hidden_layers, read.hidden_size) == (config.layers, config.width)
    if config.family == "modernbert":
        assert read.rope_parameters["full_attention"]["rope_theta"] == config.rope_theta
        assert read.rope_parameters["sliding_attention"]["rope_theta"] == config.rope_theta_local
        assert [kind == "full_attention" for kind in read.layer_types] == [
            config.window(i) is None for i in range(config.layers)
        ]
        assert read.sliding_window == config.local_window // 2


def test_without_jax_mlm_convert_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys\nsys.modules['jax_mlm'] = None\nsys.modules['jax_mlm.run'] = None\n"
        "from mlm_onnx.__main__ import main\nsys.exit(main(['convert', 'run', 'bundle']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'mlm-onnx[convert]'" in done.stderr
