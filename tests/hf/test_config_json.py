"""A config.json that says something wrong: one line, which names the key, whatever the key and the value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import MODELS, randomised

from jax_mlm.config import ModelConfig
from jax_mlm.errors import UserError
from jax_mlm.hf.__main__ import main
from jax_mlm.hf.config import FAMILIES, LAYOUTS, from_hf, hf_config
from jax_mlm.hf.weights import write_params

SPECIAL = ("position_embedding_type", "is_decoder", "inner_group_num")
OF_A_FAMILY = {
    "modernbert": ("rope_parameters", "layer_types", "rope_scaling"),
    "esm": ("emb_layer_norm_before", "is_folding_model", "mask_token_id"),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), ("pad_token_id",)),
}
READ = [
    (family, key)
    for family in FAMILIES
    for key in (
        *(theirs for theirs, (ours, _) in LAYOUTS[family].fields.items() if isinstance(ours, str)),
        *SPECIAL,
        *OF_A_FAMILY.get(family, ()),
    )
]
"""Every key that is read, in every family."""
WRONG: tuple[Any, ...] = (["x"], {"x": 1}, "wide", -7, -0.5, 1e300, float("nan"), 10**30, [[]], 3.25, True)
"""No key takes all of these, and most take none."""


def values_of(family: str) -> dict[str, Any]:
    return hf_config(MODELS[family], 0, None, None)


@pytest.mark.parametrize(("family", "key"), READ)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(family: Any, key: str) -> None:
    refused = 0
    for value in WRONG:
        try:
            assert isinstance(from_hf(values_of(family) | {key: value}, family), ModelConfig)
        except UserError as error:
            said = str(error)
            refused += 1
        else:
            said = key
        assert key in said, value
        assert "\n" not in said
    assert refused >= len(WRONG) - 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.sampled_from(READ), JSON)
def test_any_json_is_read_or_refused_by_the_name_of_its_key(where: tuple[Any, str], value: Any) -> None:
    family, key = where
    said = key
    try:
        from_hf(values_of(family) | {key: value}, family)
    except UserError as error:
        said = str(error)
    assert key in said


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    JSON | st.fixed_dictionaries({kind: JSON | st.fixed_dictionaries({"rope_theta": JSON, "rope_type": JSON})
    for kind in ("full_attention", "sliding_attention")})
)  # fmt: skip
def test_rope_parameters_of_any_shape(value: Any) -> None:
    said = "rope_parameters"
    try:
        from_hf(values_of("modernbert") | {"rope_parameters": value}, "modernbert")
    except UserError as error:
        said = str(error)
    assert "rope_parameters" in said


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("modernbert", {"rope_parameters": 3}, "rope_parameters is 3, where an object was expected"),
        ("modernbert", {"rope_parameters": {"full_attention": []}}, "rope_parameters, full_attention: "),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_theta": "x"}}}, "rope_theta is 'x'"),
        ("modernbert", {"layer_types": 4}, "layer_types is 4, where a list was expected"),
        ("bert", {"model_type": 3}, "the model_type 3 is not supported"),
        ("bert", {"num_attention_heads": 3}, "hidden_size 16 is not a multiple of num_attention_heads 3"),
        ("distilbert", {"n_heads": 3}, "dim 16 is not a multiple of n_heads 3"),
        ("esm", {"num_attention_heads": 16}, "not 1 (hidden_size / num_attention_heads)"),
        ("esm", {"position_embedding_type": "absolute"}, "only those with 'rotary' positions, ESM-2, are supported"),
        ("esm", {"emb_layer_norm_before": True}, "emb_layer_norm_before is True: only False is supported"),
        ("esm", {"is_folding_model": True}, "is_folding_model is True"),
        ("esm", {"mask_token_id": 9}, "mask_token_id is 9, where the tokenizer's mask has 2"),
        ("albert", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("bert", {"num_hidden_layers": 1000}, "encoder.layer.2.attention.self.query.weight is missing"),
        ("bert", {"vocab_size": 1 << 26, "hidden_size": 1 << 20}, "word_embeddings.weight has shape (64, 16)"),
        ("camembert", {"max_position_embeddings": 1}, "max_position_embeddings is 1, of which pad_token_id takes 1"),
    ],
)
def test_the_command_refuses_it_in_one_line(
    family: str, change: dict[str, Any], named: str, tmp_path: Any, tokenizer: Any, capsys: Any
) -> None:
    folder = tmp_path / "hf"
    folder.mkdir()
    write_params(folder / "model.safetensors", randomised(MODELS[family]), MODELS[family])
    (folder / "config.json").write_text(json.dumps(values_of(family) | change))
    tokenizer.save(str(folder / "tokenizer.json"))
    assert main(["import", str(folder), str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert named in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
