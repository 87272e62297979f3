"""Map ModelConfig to Hugging Face's config.json and back: one table a family, as transformers 5 has the fields."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from jax_mlm.config import SIZES, Family, Json, ModelConfig
from jax_mlm.errors import UserError, shown

FAMILIES: tuple[Family, ...] = typing.get_args(Family)
AFTER_PADDING: tuple[Family, ...] = ("roberta", "xlm-roberta", "camembert")
"""RoBERTa and its namesakes: positions count from the row after that of the padding's id."""
THEIR_NAMES = {"gelu_tanh": "gelu_new"}
"""Activations that transformers calls by a different name; all others keep theirs."""
SYNONYMS = {
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"), "gelu_tanh"),
    "swish": "silu",
}
"""What transformers also calls ours: the tanh forms differ only in the order of operations."""


class Layout(NamedTuple):
    """A family's config.json, and how it maps to a ModelConfig."""

    architecture: str
    fixed: Json
    """Fields of ModelConfig that the architecture decides."""
    fields: Mapping[str, tuple[str | Callable[[ModelConfig], object], object]]
    """Their name → ours, and what transformers takes where the field is left out; the default's type is the field's.

    A function instead of our name computes a field that is only written.
    """


def layer_types(layers: int, every: int) -> list[str]:
    """Return transformers' names of what each layer attends to."""
    return ["sliding_attention" if i % every else "full_attention" for i in range(layers)]


def _rope_parameters(c: ModelConfig) -> Json:
    thetas = {"full_attention": c.rope_theta, "sliding_attention": c.rope_theta_local}
    return {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()}


def _constant(value: object) -> tuple[Callable[[ModelConfig], object], None]:
    return lambda c: value, None


_POST_NORM = {
    "norm_first": False,
    "norm_bias": True,
    "positions": "learned",
    "gated": False,
    "attention_bias": True,
    "mlp_bias": True,
    "head_bias": True,
}
_COMMON = {
    "tie_word_embeddings": ("tied", True),
    "initializer_range": ("init_std", 0.02),
    "dtype": _constant("float32"),
}
_UNCHANGED: Mapping[str, object] = {"position_embedding_type": "absolute", "is_decoder": False, "inner_group_num": 1}
"""Fields that have only one value here; None and a missing field stand for it."""
_BERT = {
    "vocab_size": ("vocab_size", 30522),
    **_COMMON,
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12),
    "intermediate_size": ("ff_width", 3072),
    "max_position_embeddings": ("max_length", 512),
    "type_vocab_size": ("token_types", 2),
    "hidden_act": ("activation", "gelu"),
    "layer_norm_eps": ("norm_eps", 1e-12),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
}


def _roberta(architecture: str, vocab_size: int) -> Layout:
    fields = {**_BERT, "vocab_size": ("vocab_size", vocab_size)}
    return Layout(architecture, {**_POST_NORM, "head_activation": "gelu"}, fields)


LAYOUTS: Mapping[Family, Layout] = {
    "bert": Layout("BertForMaskedLM", _POST_NORM, _BERT),
    "roberta": _roberta("RobertaForMaskedLM", 50265),
    "xlm-roberta": _roberta("XLMRobertaForMaskedLM", 30522),
    "camembert": _roberta("CamembertForMaskedLM", 30522),
    "albert": Layout(
        "AlbertForMaskedLM",
        _POST_NORM,
        {
            **_BERT,
            "vocab_size": ("vocab_size", 30000),
            "hidden_size": ("width", 4096),
            "num_attention_heads": ("heads", 64),
            "intermediate_size": ("ff_width", 16384),
            "hidden_act": ("activation", "gelu_new"),
            "hidden_dropout_prob": ("dropout", 0.0),
            "attention_probs_dropout_prob": ("attention_dropout", 0.0),
            "embedding_size": ("embedding_width", 128),
            "num_hidden_groups": ("layer_groups", 1),
            "inner_group_num": _constant(1),
        },
    ),
    "distilbert": Layout(
        "DistilBertForMaskedLM",
        {**_POST_NORM, "norm_eps": 1e-12},
        {
            "vocab_size": ("vocab_size", 30522),
            **_COMMON,
            "dim": ("width", 768),
            "n_layers": ("layers", 6),
            "n_heads": ("heads", 12),
            "hidden_dim": ("ff_width", 3072),
            "max_position_embeddings": ("max_length", 512),
            "sinusoidal_pos_embds": _constant(False),
            "activation": ("activation", "gelu"),
            "dropout": ("dropout", 0.1),
            "attention_dropout": ("attention_dropout", 0.1),
        },
    ),
    "modernbert": Layout(
        "ModernBertForMaskedLM",
        {},
        {
            "vocab_size": ("vocab_size", 50368),
            **_COMMON,
            "hidden_size": ("width", 768),
            "num_hidden_layers": ("layers", 22),
            "num_attention_heads": ("heads", 12),
            "intermediate_size": ("ff_width", 1152),
            "max_position_embeddings": ("max_length", 8192),
            "hidden_activation": ("activation", "gelu"),
            "norm_eps": ("norm_eps", 1e-5),
            "norm_bias": ("norm_bias", False),
            "attention_bias": ("attention_bias", False),
            "mlp_bias": ("mlp_bias", False),
            "decoder_bias": ("decoder_bias", True),
            "classifier_bias": ("head_bias", False),
            "classifier_activation": ("head_activation", "gelu"),
            "attention_dropout": ("attention_dropout", 0.0),
            "embedding_dropout": (lambda c: c.dropout, None),
            "mlp_dropout": ("dropout", 0.0),
            "layer_types": (lambda c: layer_types(c.layers, c.global_every), None),
            "local_attention": ("local_window", 128),
            "rope_parameters": (_rope_parameters, None),
            # These three instead of the two lists above: transformers before 5, and transformers.js.
            "global_attn_every_n_layers": ("global_every", 3),
            "global_rope_theta": ("rope_theta", 160_000.0),
            "local_rope_theta": ("rope_theta_local", 10_000.0),
        },
    ),
    "esm": Layout(
        "EsmForMaskedLM",
        {
            **_POST_NORM,
            "norm_first": True,
            "embedding_norm": False,
            "positions": "rope",
            "activation": "gelu",
        },
        {
            **{name: field for name, field in _BERT.items() if name not in ("type_vocab_size", "hidden_act")},
            "vocab_size": ("vocab_size", 33),
            "max_position_embeddings": ("max_length", 1026),
            "position_embedding_type": _constant("rotary"),
            "emb_layer_norm_before": _constant(False),
            "is_folding_model": _constant(False),
            "rope_theta": ("rope_theta", 10_000.0),
            "token_dropout": ("token_dropout", False),
            "mask_token_id": (lambda c: c.mask_id if c.token_dropout and c.mask_id >= 0 else None, None),
        },
    ),
}
MAY_BE_ZERO = ("token_types", "local_window", "mask_id")
"""Our fields for which a config.json may give 0."""


def known_family(name: object) -> Family:
    """Return the family of that name; a UserError lists the supported ones otherwise."""
    for family in FAMILIES:
        if family == name:
            return family
    raise UserError(
        f"the model_type {shown(name)} is not supported: choose from {', '.join(FAMILIES)} "
        "(python -m jax_mlm.hf import --family NAME reads it as one of them)"
    )


def _typed(values: Json, name: str, default: Any) -> Any:  # of the type of the default, which is known by its field
    """Return a field of a config.json; a value of the wrong type is a UserError."""
    kinds, wanted = {
        int: ((int,), "an integer"),
        float: ((int, float), "a number"),
        bool: ((bool,), "true or false"),
        str: ((str,), "a name"),
        dict: ((dict,), "an object"),
        list: ((list,), "a list"),
    }[type(default)]
    value = values.get(name)
    value = default if value is None else value
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise UserError(f"{name} is {shown(value)}, where {wanted} was expected")
    return value


def _read(values: Json, name: str, ours: str, default: Any) -> Any:  # as above
    """Return a field by our meaning of it; what is outside the range of `ours`, or unknown, is a UserError."""
    value = _typed(values, name, default)
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        activations = typing.get_args(typing.get_type_hints(ModelConfig)["activation"])
        known = {**{name: name for name in activations if name not in THEIR_NAMES}, **SYNONYMS}
        if value not in known:
            raise UserError(f"{name} is {shown(value)}, which is not supported: {', '.join(known)} are")
        return known[value]
    if isinstance(default, int):
        least, most = int(ours not in MAY_BE_ZERO), SIZES[ours][1]
        if not least <= value <= most:
            raise UserError(f"{name} is {shown(value)}, where an integer from {least} to {most} was expected")
        return value
    most = 1.0 if ours in ("dropout", "attention_dropout") else 1e30
    if not (0 <= value < most) or (ours.startswith("rope") and not value):  # NaN is not in the range either
        raise UserError(f"{name} is {shown(value)}, where a number from 0 to less than {most:g} was expected")
    return float(value)


def from_hf(values: Json, family: Family) -> ModelConfig:
    """Return the model that a config.json describes.

    Raises:
        UserError: a field of the wrong type or out of range, or a switch that this encoder does not have; its name is
            in the message.
    """
    layout = LAYOUTS[family]
    _check_usual(values, family)
    found: Json = dict(layout.fixed)
    for theirs, (ours, default) in layout.fields.items():
        if isinstance(ours, str):
            found[ours] = _read(values, theirs, ours, default)
    if found.get("head_activation") == found["activation"]:
        found["head_activation"] = ""
    if family in AFTER_PADDING:
        found["position_offset"] = _read(values, "pad_token_id", "mask_id", 1) + 1
        if found["max_length"] <= found["position_offset"]:
            raise UserError(
                f"max_position_embeddings is {found['max_length']}, of which pad_token_id takes "
                f"{found['position_offset']}: no position is left"
            )
        found["max_length"] -= found["position_offset"]
    if found.get("token_dropout") and values.get("mask_token_id") is not None:
        found["mask_id"] = _read(values, "mask_token_id", "mask_id", 0)
    if family == "modernbert":
        found |= _attention(values, found)
    try:
        return ModelConfig(family=family, **found)
    except ValueError as error:
        names = {ours: theirs for theirs, (ours, _) in layout.fields.items() if isinstance(ours, str)}
        option = re.compile(r"--([a-z-]+)")
        message = option.sub(lambda m: names.get(m[1].replace("-", "_"), m[0]), str(error))
        raise UserError(message) from None


def _check_usual(values: Json, family: Family) -> None:
    """Refuse the switches that no field of ours can express."""
    usual = dict(_UNCHANGED)
    if family == "esm":
        if values.get("position_embedding_type", "absolute") != "rotary":
            raise UserError(
                f"position_embedding_type is {shown(values.get('position_embedding_type', 'absolute'))}: "
                "of the ESM models only those with 'rotary' positions, ESM-2, are supported"
            )
        usual |= {"position_embedding_type": "rotary", "emb_layer_norm_before": False, "is_folding_model": False}
    for name, value in usual.items():
        given = values.get(name)
        if given is not None and (type(given) is not type(value) or given != value):
            raise UserError(f"{name} is {shown(given)}: only {value!r} is supported")


def _attention(values: Json, found: Json) -> Json:
    """Read what transformers 5 writes instead of the fields of older versions: `rope_parameters` and `layer_types`."""
    if values.get("rope_scaling"):
        raise UserError("rope_scaling is not supported: only rotary positions of type 'default' are")
    thetas = {"full_attention": found["rope_theta"], "sliding_attention": found["rope_theta_local"]}
    if "local_rope_theta" in values and values["local_rope_theta"] is None:
        thetas["sliding_attention"] = thetas["full_attention"]
    parameters: Json = _typed(values, "rope_parameters", {})
    for kind in thetas:
        try:
            given: Json = _typed(parameters, kind, {})
            if given.get("rope_type", "default") != "default":
                raise UserError(f"rope_type is {shown(given['rope_type'])}: only 'default' is supported")
            thetas[kind] = _read(given, "rope_theta", "rope_theta", thetas[kind])
        except UserError as error:
            raise UserError(f"rope_parameters, {kind}: {error}") from None
    kinds = _typed(values, "layer_types", [])
    return {
        "rope_theta": thetas["full_attention"],
        "rope_theta_local": thetas["sliding_attention"],
        "global_every": _global_every(kinds, found["layers"]) if kinds else found["global_every"],
    }


def _global_every(kinds: list[object], layers: int) -> int:
    """Return the n with which layers 0, n, 2n, … attend globally."""
    if len(kinds) != layers:
        raise UserError(f"layer_types lists {len(kinds)} layers, num_hidden_layers says {layers}")
    for n in range(1, layers + 1):
        if kinds == layer_types(layers, n):
            return n
    raise UserError(f"layer_types is {shown(kinds)}: only layers 0, n, 2n, … can be 'full_attention', the others local")


def _written(c: ModelConfig, ours: str | Callable[[ModelConfig], object]) -> object:
    """Return the value of a field, an activation by their name."""
    value = getattr(c, ours) if isinstance(ours, str) else ours(c)
    return THEIR_NAMES.get(value, value) if isinstance(value, str) else value


def hf_config(c: ModelConfig, pad: int, cls: int | None, sep: int | None) -> Json:
    """Return config.json: the family's own field names, with the switches that its architecture has."""
    layout = LAYOUTS[c.family]
    c = replace(
        c,
        embedding_width=c.table_width,
        layer_groups=c.layer_groups or c.layers,
        head_activation=c.head_activation or c.activation,
        max_length=c.max_length + (c.position_offset if c.family in AFTER_PADDING else 0),
    )
    written = {theirs: _written(c, ours) for theirs, (ours, _) in layout.fields.items()}
    return {
        "architectures": [layout.architecture],
        "model_type": c.family,
        "vocab_size": c.vocab_size,
        "pad_token_id": pad,
        "bos_token_id": cls,
        "eos_token_id": sep,
        **written,
        **({"cls_token_id": cls, "sep_token_id": sep} if c.family == "modernbert" else {}),
    }


def _meaning(c: ModelConfig) -> ModelConfig:
    """Return the model with every field that has no effect, or two spellings, written in one way."""
    c = replace(c, global_every=min(c.global_every, c.layers))
    if c.positions == "learned":
        c = replace(c, rope_theta=10_000.0)
    if c.positions == "learned" or c.global_every == 1:
        c = replace(c, rope_theta_local=10_000.0)
    if c.global_every == 1:
        c = replace(c, local_window=128)
    groups = c.layer_groups if c.family != "albert" else c.layer_groups or c.layers
    head = "" if c.head_activation == c.activation else c.head_activation
    return replace(c, layer_groups=groups, head_activation=head)


def check_expressible(c: ModelConfig, pad: int) -> None:
    """Raise UserError where the family's config.json has no field for a switch of this model."""
    ours, back = _meaning(c), _meaning(from_hf(hf_config(c, pad, None, None), c.family))
    for field in dataclasses.fields(ModelConfig):
        mine, theirs = getattr(ours, field.name), getattr(back, field.name)
        if mine != theirs:
            raise UserError(
                f"a {c.family} model in Hugging Face's layout has {field.name} {theirs!r}, this one has {mine!r}: "
                "train it without that option to export it"
            )
