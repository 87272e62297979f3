"""The presets are the published shapes, and a small model of each family goes the whole way."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest
from mlm_onnx import FillMask
from mlm_onnx.convert.pipeline import convert
from support.paths import ROOT
from support.runs import train_line
from support.texts import write_sentences

from jax_mlm.cli.options import build
from jax_mlm.config import MaskConfig, TrainConfig
from jax_mlm.data.tokenizer import load_tokenizer, vocabulary_of
from jax_mlm.hf.directory import export_hf, read_hf
from jax_mlm.model.heads import init_params
from jax_mlm.model.params import expected_shapes, leaves
from jax_mlm.presets import PRESETS
from jax_mlm.run.directory import read_run
from jax_mlm.run.log import read_metrics
from jax_mlm.train.options import defaults

PUBLISHED = {
    "bert-base": (30_522, 109_514_298),
    "bert-large": (30_522, 335_174_458),
    "roberta-base": (50_265, 124_697_433),
    "roberta-large": (50_265, 355_412_057),
    "albert-base": (30_000, 11_221_680),
    "albert-large": (30_000, 16_795_824),
    "distilbert-base": (30_522, 66_985_530),
    "modernbert-base": (50_368, 149_655_232),
    "modernbert-large": (50_368, 395_881_664),
    "esm2-t6-8m": (33, 7_512_353),
}
"""Tokens, and parameters of the model with its masked-language head, as transformers counts them.

ESM-2's contact head of 121 is not among them, and its unused table of positions is not either.
"""


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_have_weights_of_the_shapes_they_name_and_the_published_number(name: str) -> None:
    tokens, parameters = PUBLISHED.get(name, (64, None))
    model = replace(PRESETS[name].model, vocab_size=tokens)
    shapes = expected_shapes(model)
    assert shapes["token_table",] == (tokens, model.table_width)
    assert len({key for key, *_ in shapes if key.startswith("layer_")}) == (model.layer_groups or model.layers)
    assert PRESETS[name].preset == name
    if parameters is not None:
        assert sum(map(math.prod, shapes.values())) == parameters
        assert 0 <= PRESETS[name].corpus.tokenizer_limit - tokens < 64


def test_masks_become_fewer_from_scratch_alone_and_a_rate_that_is_given_is_constant() -> None:
    def made(preset: str = "tiny", **more: Any) -> TrainConfig:
        given = {"preset": preset, "data": ("a.txt",), **more}
        return build(TrainConfig, given, defaults(given))

    assert made().mask == MaskConfig(mask_rate=0.4, mask_rate_end=0.15)
    assert made(mask_rate=0.3).mask == MaskConfig(mask_rate=0.3)
    assert made(mask_rate=0.3, mask_rate_end=0.2).mask == MaskConfig(mask_rate=0.3, mask_rate_end=0.2)
    assert made("roberta-base").mask == MaskConfig()
    for start in ("init", "distil"):
        continued = made(**{start: str(ROOT / "tests" / "golden" / "run")})
        assert continued.mask == MaskConfig(mask_rate=0.15)
        assert (continued.optim.optimizer, continued.optim.weight_decay) == ("adamw", 0.01)


@pytest.mark.parametrize("name", ["distilbert-base", "albert-base", "modernbert-base"])
def test_the_layers_that_are_not_traced_are_as_the_second(name: str) -> None:
    model = replace(PRESETS[name].model, vocab_size=64, layers=4)
    every = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    assert expected_shapes(model) == {path: leaf.shape for path, leaf in leaves(every).items()}


SMALL = [
    "--width", 16, "--heads", 2, "--ff-width", 24, "--max-length", 32, "--length", 16, "--batch", 4, "--accumulate", 1,
    "--steps", 3, "--log-every", 1, "--eval-rows", 8, "--eval-every", 100, "--layers", 2, "--lr", 1e-3,
    "--dropout", 0, "--attention-dropout", 0,
]  # fmt: skip
FAMILIES = {
    "bert-base": ["--tokenizer-size", 64],
    "roberta-base": ["--tokenizer-size", 320],
    "albert-base": ["--embedding-width", 8, "--tokenizer-size", 64],
    "distilbert-base": ["--tokenizer-size", 64],
    "modernbert-base": ["--global-every", 2, "--local-window", 8, "--tokenizer-size", 320],
    "esm2-t6-8m": [],
}


def write_proteins(path: Path) -> Path:
    draw = random.Random(0)
    path.write_text("".join("M" + "".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=40)) + "\n" for _ in range(300)))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_model_of_each_family_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    """Trained from scratch, exported, read back, continued from there, converted."""
    write = write_proteins if name.startswith("esm") else write_sentences
    run, common = tmp_path / "run", ["--preset", name, *SMALL, "--data", write(tmp_path / "text")]
    assert train_line(*common, *FAMILIES[name], "--out", run) == 0
    model, preset = read_run(run).model, PRESETS[name].model
    assert [line["step"] for line in read_metrics(run) if line["kind"] == "train"] == [1, 2, 3]
    assert (model.family, model.position_offset) == (preset.family, preset.position_offset)

    export_hf(run, tmp_path / "hf")
    assert read_hf(tmp_path / "hf").model == model
    vocabulary = vocabulary_of(load_tokenizer(run / "tokenizer.json"))
    written: dict[str, Any] = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (written["model_type"], written["pad_token_id"]) == (preset.family, vocabulary.pad)
    if preset.family == "roberta":
        assert vocabulary.pad + 1 == model.position_offset
        assert json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())["mask_token"] == "<mask>"

    assert train_line("--init", tmp_path / "hf", *common, "--out", tmp_path / "more") == 0
    assert read_run(tmp_path / "more").model == model
    before, after = (read_metrics(path)[0]["loss"] for path in (run, tmp_path / "more"))
    assert after < before, "the same rows and masks, after three steps on them"

    parity = convert(tmp_path / "more", tmp_path / "bundle")["parity"]
    assert parity["fp32"]["max_difference"] <= 1e-4
    assert parity["fp32"]["top1_agreement"] == 1.0
    assert parity["int8"]["top1_agreement"] >= 0.8
    text = {"roberta": "Bano <mask> fisa.", "esm": "MKT<mask>LV"}.get(preset.family, "Bano [MASK] fisa.")
    assert FillMask(tmp_path / "bundle")(text)["masks"][0]["candidates"]
