"""What int8 costs is measured on real text, and matrices that cost too much stay in float32."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mlm_onnx.__main__ import main
from mlm_onnx.bundle.layout import BundleError
from mlm_onnx.bundle.read import open_bundle
from mlm_onnx.convert import calibrate
from mlm_onnx.convert.asked import ALLOWED, Asked, against, queries
from mlm_onnx.convert.parity import ParityError, open_session
from mlm_onnx.convert.precision import FP32
from mlm_onnx.convert.quantize import INT8, REDUCED, TABLE, adjusted
from mlm_onnx.convert.targets import FILL_MASK, fill_mask_graph
from onnx import numpy_helper
from support.bundles import fast_side
from support.models import MODERN, randomised

from jax_mlm.data.tokenizer import train_tokenizer, vocabulary_of

TEXT = Path(__file__).read_text()
TOKENIZER = train_tokenizer(TEXT.splitlines(), "wordpiece", 192)
VOCABULARY = vocabulary_of(TOKENIZER)
CONFIG = replace(MODERN, vocab_size=192)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "held-out.txt").write_text(TEXT)
    return tmp_path / "held-out.txt"


def test_the_same_tokens_are_hidden_each_time_and_no_special_ones(text: Path) -> None:
    made = queries(text, TOKENIZER, VOCABULARY, 48)
    for (ids, at, true), (again, at_again, _) in zip(made, queries(text, TOKENIZER, VOCABULARY, 48), strict=True):
        assert np.array_equal(ids, again)
        assert np.array_equal(at, at_again)
        assert ids.shape[1] <= 48
        assert (ids[0, at[0]] == VOCABULARY.mask).all()
        assert not np.isin(true, VOCABULARY.special).any()
    shares = [at.shape[1] / (ids.shape[1] - 2) for ids, at, _ in made if ids.shape[1] > 20]
    assert 0.12 < np.mean(shares) < 0.18


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("one two three\n")
    with pytest.raises(BundleError, match=r"only \d tokens"):
        queries(tmp_path / "short.txt", TOKENIZER, VOCABULARY, 48)
    with pytest.raises(BundleError, match="no such file"):
        queries(tmp_path / "none.txt", TOKENIZER, VOCABULARY, 48)


def test_costs_by_hand() -> None:
    facts = against(np.array([1, 2, 3, 9]), np.array([1, 2, 8, 9]), np.array([1, 2, 3, 4]))
    assert facts == {"tokens": 4, "top1_agreement": 0.75, "accuracy": {"fp32": 0.75, "int8": 0.5}, "drop": 0.25}


@pytest.mark.parametrize("harmful", ["layer_1.mlp.down", TABLE])
def test_the_matrix_that_costs_too_much_stays_in_float32(
    harmful: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = randomised(CONFIG)
    fill_mask_graph(CONFIG, params).write(tmp_path / "g.onnx")
    exact = fast_side(tmp_path / "g.onnx")
    asked = [(i, at) for i, at, _ in queries(text, TOKENIZER, VOCABULARY, 48)[:60]]
    truth = np.concatenate([exact(ids, at)[0].argmax(-1) for ids, at in asked])

    def broken(g: Any, x: str, name: str, kernel: Any, bias: Any, **rest: Any) -> str:
        """Int8 that loses one matrix; the others are exact."""
        return FP32.linear(g, x, name, kernel * 0 if name == harmful else kernel, bias)

    def projected(g: Any, x: str, name: str, table: Any) -> str:
        return FP32.project(g, x, name, table) if name != harmful else FP32.project(g, x, "lost", table * 0)

    monkeypatch.setattr(calibrate, "INT8", replace(FP32, name="int8", linear=broken, project=projected))
    keep, facts = calibrate.calibrate(
        Asked(
            FILL_MASK,
            CONFIG,
            params,
            [{"input_ids": ids, "positions": at} for ids, at in asked],
            lambda logits: logits[0].argmax(-1),
            lambda expected, int8: against(np.concatenate(expected), np.concatenate(int8), truth),
            ALLOWED,
            len(asked),
        ),
        text,
    )
    assert harmful in keep
    assert len(keep) == 1 or harmful == TABLE, "the table is kept last"
    assert facts["kept_in_fp32"] == sorted(keep)
    assert facts["before_keeping"]["drop"] > 0.01
    assert facts["drop"] == 0
    assert facts["top1_agreement"] == facts["accuracy"]["fp32"] == 1


def test_the_graph_that_others_are_compared_with_keeps_its_file(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its session reads the weights there: written over, they would be others, or the process would end."""
    opened: list[Path] = []

    def recorded(path: Path, *rest: Any) -> Any:
        opened.append(path)
        return open_session(path, *rest)

    monkeypatch.setattr(calibrate, "open_session", recorded)
    rows = [{"input_ids": np.arange(8)[None], "positions": np.array([[3]])}]
    judged = {"drop": 1.0}
    keep, _ = calibrate.calibrate(
        Asked(FILL_MASK, CONFIG, randomised(CONFIG), rows, lambda logits: logits[0], lambda *_: judged, ALLOWED, 1),
        text,
    )
    assert TABLE in keep, "all matrices were ranked"
    assert opened[0] not in opened[1:]


@pytest.mark.parametrize(("examples", "same", "refused"), [(20, 0.95, False), (20, 0.9, True), (1000, 0.98, True)])
def test_answers_in_float32_are_jaxs(examples: int, same: float, refused: bool) -> None:
    result = {"examples": examples, "as_jax": {"fp32": same, "int8": 1.0}}
    with pytest.raises(ParityError, match="answers of the graph") if refused else nullcontext():
        calibrate.check_answers(result)


def test_kept_matrices_and_seven_bits_are_what_is_stored(tmp_path: Path) -> None:
    fill_mask_graph(CONFIG, randomised(CONFIG), adjusted(INT8, {"head"}, reduce_range=True)).write(tmp_path / "g.onnx")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(tmp_path / "g.onnx").graph.initializer}
    assert stored["head.kernel"].dtype == np.float32
    sevens = [array for array in stored.values() if array.dtype == np.int8]
    assert len(sevens) == 4 * CONFIG.layers + 1  # queries of the last layer are a matrix of their own
    assert {int(np.abs(array).max()) for array in sevens} == {REDUCED}
    assert 2 * 255 * REDUCED < 1 << 15, "the sum of two products must fit into 16 bits"


def test_convert_writes_it_into_the_manifest(
    two_checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.txt").write_text("This model creates a super relationships between the words\n" * 100)
    options = ["--calibrate", str(tmp_path / "text.txt"), "--reduce-range", "--for", "hub"]
    assert main(["convert", str(two_checkpoints), str(tmp_path / "b"), *options]) == 0
    said = capsys.readouterr().out
    assert "hidden tokens of text.txt" in said
    assert "7-bit weights: exact on every processor" in said
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest["parity"]["calibration"]["tokens"] == 100
    assert manifest["parity"]["calibration"]["drop"] <= 0.01
    assert manifest["int8"]["weight_bits"] == 7
    fast = {"fast/fill_mask.onnx", "fast/embed.onnx"}
    assert set(manifest["graphs"]) == fast | {"onnx/model.onnx", "onnx/model_quantized.onnx"}


@pytest.mark.parametrize("options", [["--calibrate", "none.txt"], ["--calibrate", "x", "--dtype", "fp32"]])
def test_calibration_that_cannot_be(
    two_checkpoints: Path,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["convert", str(two_checkpoints), str(tmp_path / "b"), *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--calibrate" in err
    assert not (tmp_path / "b").exists()
