"""What processors without VNNI make of int8: emulated pair by pair, recorded at conversion, avoided by 7 bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlm_onnx import FillMask
from mlm_onnx.__main__ import main
from mlm_onnx.answer import engine
from mlm_onnx.answer.session import sums_saturate
from mlm_onnx.convert.parity import onnx_forward
from mlm_onnx.convert.quantize import INT8, REDUCED, adjusted
from mlm_onnx.convert.saturation import (
    Count,
    emulate,
    exact_product,
    int8_encoder,
    measure,
    quantise,
    saturating_product,
)
from support.models import CONFIGS, randomised

BERT = CONFIGS["bert"]


def cut(a: list[list[int]], w: list[list[int]]) -> tuple[list[list[float]], Count]:
    count = Count()
    return saturating_product(np.array(a, np.uint8), np.array(w, np.int8), count).tolist(), count


def test_pairs_by_hand() -> None:
    """255·127·2 = 64,770 is cut to 32,767, and -255·128·2 to -32,768; the pairs are neighbours, and only they."""
    assert cut([[255, 255]], [[127], [127]]) == ([[32_767]], Count(1, 1))
    assert cut([[255, 255]], [[-128], [-128]]) == ([[-32_768]], Count(1, 1))
    assert cut([[255, 255]], [[127], [-127]]) == ([[0]], Count(0, 1))
    assert cut([[255, 0, 255, 0]], [[127], [127], [127], [127]]) == ([[64_770]], Count(0, 2))
    assert cut([[0, 255, 255, 0]], [[127], [127], [127], [127]]) == ([[64_770]], Count(0, 2))
    assert cut([[255, 255, 255]], [[127], [127], [127]]) == ([[32_767 + 255 * 127]], Count(1, 2))
    assert cut([[255, 255, 255, 255]], [[127, 1], [127, 1], [-127, 1], [-127, 1]]) == ([[-1, 1020]], Count(2, 4))
    assert cut([[129, 129], [1, 2]], [[127], [127]]) == ([[32_766], [381]], Count(0, 2))
    assert cut([[129, 130]], [[127], [127]]) == ([[32_767]], Count(1, 1))


def test_it_is_the_slow_definition() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (7, 38)).astype(np.uint8)
    w = rng.integers(-127, 128, (38, 23)).astype(np.int8)
    pairs = a.astype(int)[:, :, None] * w.astype(int)
    sums = pairs[:, ::2] + pairs[:, 1::2]
    count = Count()
    np.testing.assert_array_equal(saturating_product(a, w, count), np.clip(sums, -32_768, 32_767).sum(1))
    assert count == Count(int(((sums > 32_767) | (sums < -32_768)).sum()), sums.size)
    assert count.cut > 10


def test_seven_bits_are_never_cut_off() -> None:
    a = np.full((1, 64), 255, np.uint8)
    for weight in (REDUCED, -REDUCED):
        w, count = np.full((64, 3), weight, np.int8), Count()
        np.testing.assert_array_equal(saturating_product(a, w, count), exact_product(a, w))
        assert count == Count(0, 96)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, BERT.vocab_size, 12) for _ in range(2)]
    facts = measure(BERT, randomised(BERT), adjusted(INT8, reduce_range=True), texts)
    assert (facts["pairs"], facts["rms_difference"], facts["top1_agreement"], facts["matters"]) == (0, 0, 1, False)


def test_without_cutting_the_emulation_is_onnxruntime(tmp_path: Path) -> None:
    config, params = CONFIGS["modernbert-local"], randomised(CONFIGS["modernbert-local"])
    graph = int8_encoder(config, params, INT8)
    (tmp_path / "g.onnx").write_bytes(graph.SerializeToString())
    ids, at = np.arange(3, 15)[None], np.array([[0, 5, 11]])
    expected = onnx_forward(tmp_path / "g.onnx")(ids, at)
    np.testing.assert_allclose(emulate(graph, exact_product)(ids, at), expected, atol=1e-3)
    assert expected.std() > 1


def test_activations_are_quantised_as_onnx_says() -> None:
    x = np.array([[-1.0, 0.0, 3.0, 0.5]], np.float32)
    found, scale, zero = quantise(x)
    assert (float(scale), float(zero)) == (pytest.approx(4 / 255), 64)
    assert found.tolist() == [[0, 64, 255, 96]]
    assert quantise(np.zeros((1, 2), np.float32))[0].tolist() == [[0, 0]]


def test_conversion_says_so(two_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(two_checkpoints), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    facts = json.loads((tmp_path / "b" / "manifest.json").read_text())["int8"]["saturation"]
    assert 0 < facts["pairs"] < 0.1
    assert facts["tokens"] == 48
    assert f"without VNNI {facts['pairs']:.2%} of the sums" in said
    assert facts["matters"] == ("convert with --reduce-range" in said) == (facts["top1_agreement"] < 1)
    assert main(["convert", str(two_checkpoints), str(tmp_path / "b"), "--reduce-range"]) == 0
    assert "7-bit weights: right on every processor" in capsys.readouterr().out
    assert "saturation" not in json.loads((tmp_path / "b" / "manifest.json").read_text())["int8"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512bw\n", True),
        ("flags\t\t: fpu avx2\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("flags\t\t: fpu avx2 avx_vnni\n", False),
        ("Features\t: fp asimd asimddp\n", False),
        ("", False),
    ],
)
def test_processors_are_known_by_their_flags(flags: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}bogomips\t: 1\n")
    assert sums_saturate(tmp_path / "cpuinfo") is expected
    assert sums_saturate(tmp_path / "none") is False


def test_exact_kernels_answer_alike(sentence_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for without VNNI: other kernels, the same whole numbers."""
    text = "This [MASK] creates a super [MASK]"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "sums_saturate", lambda: False)
        usual = FillMask(sentence_bundles["int8"], threads=1)(text, top_k=13)
    entries: list[tuple[str, str]] = []
    monkeypatch.setattr(engine, "sums_saturate", lambda: True)
    monkeypatch.setattr(engine.ort, "SessionOptions", _recording(engine.ort.SessionOptions, entries))
    exact = FillMask(sentence_bundles["int8"], threads=1)(text, top_k=13)
    assert ("session.x64quantprecision", "1") in entries
    for one, other in zip(usual["masks"], exact["masks"], strict=True):
        assert [each["token"] for each in one["candidates"]] == [each["token"] for each in other["candidates"]]
        for a, b in zip(one["candidates"], other["candidates"], strict=True):
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-6)


def _recording(real: Any, entries: list[tuple[str, str]]) -> Callable[[], Any]:
    class Recording(real):
        def add_session_config_entry(self, name: str, value: str) -> None:
            entries.append((name, value))
            super().add_session_config_entry(name, value)

    return Recording
