"""On processors that cut off sums of 8-bit products, onnxruntime is asked for kernels that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlm_onnx import FillMask
from mlm_onnx.answer import session
from mlm_onnx.answer.session import sums_saturate


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
    """Exact kernels, which are chosen without VNNI, compute the same integers."""
    text = "This [MASK] creates a super [MASK]"
    with monkeypatch.context() as patch:
        patch.setattr(session, "sums_saturate", lambda: False)
        usual = FillMask(sentence_bundles["int8"], threads=1)(text, top_k=13)
    entries: list[tuple[str, str]] = []
    monkeypatch.setattr(session, "sums_saturate", lambda: True)
    monkeypatch.setattr(session.ort, "SessionOptions", _recording(session.ort.SessionOptions, entries))
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
