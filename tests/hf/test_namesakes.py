"""XLM-RoBERTa and CamemBERT go the whole way as RoBERTa does, and reserved pieces are never answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from mlm_onnx import FillMask, QueryError
from mlm_onnx.bundle.layout import HUB_GRAPH
from mlm_onnx.convert.pipeline import convert
from mlm_onnx.convert.request import Request
from support.bundles import TEXTS
from support.models import MODELS, softened
from support.runs import SMALL, save_run, train_line
from tokenizers import Tokenizer

from jax_mlm.data.tokenizer import train_tokenizer
from jax_mlm.hf.directory import export_hf, import_hf, read_hf
from jax_mlm.hf.tokenizer import read_tokenizer
from jax_mlm.run.directory import read_run

UNUSED = tuple(f"[unused{i}]" for i in range(6))


@pytest.fixture(scope="module")
def with_reserved() -> Tokenizer:
    """A published BERT's vocabulary in small: reserved pieces between the special tokens and the words."""
    content = json.loads(train_tokenizer(TEXTS, "wordpiece", 320).to_str())
    pieces = sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__)
    content["model"]["vocab"] = {piece: id for id, piece in enumerate([*pieces[:5], *UNUSED, *pieces[5:]])}
    return Tokenizer.from_str(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["xlm-roberta", "camembert"])
def test_from_a_directory_through_training_to_answers(family: str, tmp_path: Path) -> None:
    model = replace(MODELS[family], vocab_size=320, position_offset=2)
    tokenizer = train_tokenizer(TEXTS, "bpe", 320, special="roberta")
    export_hf(save_run(tmp_path / "made", model, softened(model), tokenizer), tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == family
    (tmp_path / "text").write_text("\n".join(TEXTS[:200]))
    start = ["--init", tmp_path / "hf", "--data", tmp_path / "text"]
    assert train_line(*start, *SMALL, "--steps", 2, "--out", tmp_path / "run") == 0
    assert read_run(tmp_path / "run").model == model
    export_hf(tmp_path / "run", tmp_path / "again")
    assert read_hf(tmp_path / "again").model == model
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == family
    import_hf(tmp_path / "again", tmp_path / "imported")
    convert(tmp_path / "imported", tmp_path / "bundle", Request("fp32", "hub"))
    config = json.loads((tmp_path / "bundle" / "tokenizer_config.json").read_text())
    assert config["model_input_names"] == ["input_ids", "attention_mask"]
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text()) == config
    assert FillMask(tmp_path / "bundle")("The <mask> was in the garden.")["masks"][0]["candidates"]

    pad, ids = tokenizer.token_to_id("<pad>"), np.array([tokenizer.encode("The <mask> was in the garden.").ids])
    session = ort.InferenceSession(str(tmp_path / "bundle" / HUB_GRAPH))

    def logits(ids: np.ndarray) -> np.ndarray:
        return session.run(None, {"input_ids": ids, "attention_mask": (ids != pad).astype(np.int64)})[0]

    left = logits(np.pad(ids, ((0, 0), (4, 0)), constant_values=pad))
    assert np.abs(left[:, 4:] - logits(ids)).max() <= 1e-4


def test_reserved_pieces_are_never_answers(with_reserved: Tokenizer, tmp_path: Path) -> None:
    model = replace(MODELS["bert"], vocab_size=with_reserved.get_vocab_size())
    params = softened(model)
    params["decoder_bias"] = params["decoder_bias"] + np.isin(np.arange(model.vocab_size), range(5, 11)) * 50
    run = save_run(tmp_path / "run", model, params, with_reserved)
    tokens = convert(run, tmp_path / "bundle", Request("fp32"))["tokens"]
    assert tokens["special"] == list(range(11))
    fill = FillMask(tmp_path / "bundle")
    every = fill("The cat [MASK] in the garden.", top_k=320 - 5)["masks"][0]["candidates"]
    assert not {candidate["id"] for candidate in every} & set(range(11))
    with pytest.raises(QueryError, match=r"unused3"):
        fill("The cat [MASK] in the garden.", targets=["[unused3]"])


def test_a_directory_reads_its_reserved_pieces_as_ordinary_text_does_not_hold_them(
    with_reserved: Tokenizer, tmp_path: Path
) -> None:
    vocab = with_reserved.get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.__getitem__)))
    assert read_tokenizer(tmp_path)[0].encode("The cat").ids == with_reserved.encode("The cat").ids
