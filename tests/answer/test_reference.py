"""Against transformers' fill-mask pipeline: needs the extra `reference` (pip install 'jax-mlm[reference]')."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mlm_onnx import FillMask
from mlm_onnx.convert import Request, write_bundle
from support.bundles import ONE_SHAPE, ORIGIN
from support.models import MODELS, SHAPE, randomised
from support.runs import save_run
from support.tokenizers import CASES, MADE

from jax_mlm.data.tokenizer import mask_of, padded_size
from jax_mlm.hf.directory import export_hf

pytest.importorskip("torch", reason="compares with torch: pip install 'jax-mlm[reference]'")
transformers = pytest.importorskip(
    "transformers", reason="compares with transformers: pip install 'jax-mlm[reference]'"
)

TOLERANCE = 1e-4


@pytest.mark.parametrize("kind", MADE)
def test_ids_and_probabilities_are_those_of_the_pipeline(kind: str, tmp_path: Path) -> None:
    """Every kind of tokenizer agrees with them, except for line ends before a mask, where training is followed."""
    tokenizer = MADE[kind]()
    family = "roberta" if tokenizer.token_to_id("<pad>") == 1 else "bert"
    rows = padded_size(tokenizer.get_vocab_size(with_added_tokens=True), "bpe")
    model = replace(MODELS[family], **{**SHAPE, "vocab_size": rows}, dropout=0.0, attention_dropout=0.0)
    params, mask = randomised(model), tokenizer.id_to_token(mask_of(tokenizer))
    export_hf(save_run(tmp_path / "run", model, params, tokenizer), tmp_path / "hf")
    pipeline = transformers.pipeline("fill-mask", model=str(tmp_path / "hf"), tokenizer=str(tmp_path / "hf"))
    write_bundle(tmp_path / "b", model, params, tokenizer, Request("fp32"), ORIGIN, ONE_SHAPE)
    fill = FillMask(tmp_path / "b", threads=1)
    for text in (case.replace("M", mask) for case in CASES[kind]["reads"] if "\n" not in case and "  " not in case):
        assert fill.reader.masked(text).ids.tolist() == pipeline.tokenizer(text)["input_ids"], text
        theirs = {each["token"]: each["score"] for each in pipeline(text, top_k=rows)}
        for each in fill(text, top_k=8)["masks"][0]["candidates"]:
            assert each["probability"] == pytest.approx(theirs[each["id"]], abs=TOLERANCE)
    target = next(word for word in ("the", "s") if len(tokenizer.encode(word, add_special_tokens=False).ids) <= 2)
    ours = fill(f"cat {mask} sat", targets=[target])["masks"][0]["candidates"][0]
    stored = tokenizer.id_to_token(ours["id"])
    (found,) = pipeline(f"cat {mask} sat", targets=[stored])
    assert (found["token"], found["score"]) == (ours["id"], pytest.approx(ours["probability"], abs=TOLERANCE))
