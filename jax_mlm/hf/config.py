"""ModelConfig ↔ Hugging Face's config.json for the five families, as transformers 5 reads and writes them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jax_mlm.config import Family, ModelConfig
from jax_mlm.errors import UserError

FAMILIES: tuple[Family, ...] = typing.get_args(Family)
ARCHITECTURES = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "albert": "AlbertForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}
READ_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"), "gelu_tanh"),
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Their names of one function: the tanh forms differ in the order of operations only."""

_BERT: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
DEFAULTS: Mapping[Family, Mapping[str, Any]] = {
    "bert": _BERT,
    "roberta": {**_BERT, "vocab_size": 50265, "pad_token_id": 1},
    "albert": {
        **_BERT,
        "vocab_size": 30000,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "embedding_size": 128,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
    },
    "distilbert": {
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "max_position_embeddings": 512,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    },
    "modernbert": {
        "vocab_size": 50368,
        "hidden_size": 768,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "intermediate_size": 1152,
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "initializer_range": 0.02,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "local_attention": 128,
        "embedding_dropout": 0.0,
        "mlp_bias": False,
        "mlp_dropout": 0.0,
        "decoder_bias": True,
        "classifier_bias": False,
        "classifier_activation": "gelu",
        "tie_word_embeddings": True,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
    },
}
"""What a field that config.json leaves out stands for, as in transformers."""


def known_family(name: str) -> Family:
    """The family of that name; a UserError that lists the supported ones otherwise."""
    for family in FAMILIES:
        if family == name:
            return family
    raise UserError(
        f"the model type {name!r} is not supported: choose from {', '.join(FAMILIES)} "
        "(python -m jax_mlm.hf import --family NAME reads it as one of them)"
    )


class _Fields:
    """The fields of a config.json, with the family's defaults; a value of the wrong type is a UserError."""

    def __init__(self, values: Mapping[str, Any], family: Family) -> None:
        self._values, self._defaults = values, DEFAULTS[family]

    def _get(self, name: str, kinds: tuple[type, ...], wanted: str) -> Any:
        value = self._values.get(name)
        value = self._defaults[name] if value is None else value
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(f"{name} is {value!r}, where {wanted} was expected")
        return value

    def int(self, name: str) -> int:
        return self._get(name, (int,), "an integer")

    def float(self, name: str) -> float:
        return float(self._get(name, (int, float), "a number"))

    def bool(self, name: str) -> bool:
        return self._get(name, (bool,), "true or false")

    def activation(self, name: str) -> Any:
        given = self._get(name, (str,), "a name")
        if given not in READ_ACTIVATIONS:
            raise UserError(f"{name} is {given!r}, which is not supported: {', '.join(READ_ACTIVATIONS)} are")
        return READ_ACTIVATIONS[given]


def from_hf(values: Mapping[str, Any], family: Family) -> ModelConfig:
    """The model that a config.json describes.

    Raises:
        UserError: a field of the wrong type, or a switch that this encoder does not have.
    """
    for name, usual in (("position_embedding_type", "absolute"), ("is_decoder", False), ("inner_group_num", 1)):
        if values.get(name) not in (None, usual):
            raise UserError(f"{name} is {values[name]!r}: only {usual!r} is supported")
    f = _Fields(values, family)
    common: dict[str, Any] = {
        "family": family,
        "vocab_size": f.int("vocab_size"),
        "init_std": f.float("initializer_range"),
        "tied": f.bool("tie_word_embeddings"),
    }
    if family == "modernbert":
        return ModelConfig(**common, **_modernbert(values, f))
    common |= {
        "norm_first": False,
        "norm_bias": True,
        "positions": "learned",
        "gated": False,
        "attention_bias": True,
        "mlp_bias": True,
        "head_bias": True,
    }
    if family == "distilbert":
        return ModelConfig(
            **common,
            width=f.int("dim"),
            layers=f.int("n_layers"),
            heads=f.int("n_heads"),
            ff_width=f.int("hidden_dim"),
            max_length=f.int("max_position_embeddings"),
            norm_eps=1e-12,
            activation=f.activation("activation"),
            dropout=f.float("dropout"),
            attention_dropout=f.float("attention_dropout"),
        )
    common |= {
        **_sizes(f),
        "max_length": f.int("max_position_embeddings"),
        "token_types": f.int("type_vocab_size"),
        "norm_eps": f.float("layer_norm_eps"),
        "activation": f.activation("hidden_act"),
        "dropout": f.float("hidden_dropout_prob"),
        "attention_dropout": f.float("attention_probs_dropout_prob"),
    }
    if family == "albert":
        common |= {"embedding_width": f.int("embedding_size"), "layer_groups": f.int("num_hidden_groups")}
    if family == "roberta":
        offset = f.int("pad_token_id") + 1
        common |= {
            "position_offset": offset,
            "max_length": common["max_length"] - offset,
            "head_activation": "" if common["activation"] == "gelu" else "gelu",
        }
    return ModelConfig(**common)


def _sizes(f: _Fields) -> dict[str, int]:
    return {
        "width": f.int("hidden_size"),
        "layers": f.int("num_hidden_layers"),
        "heads": f.int("num_attention_heads"),
        "ff_width": f.int("intermediate_size"),
    }


def _modernbert(values: Mapping[str, Any], f: _Fields) -> dict[str, Any]:
    activation, head_activation = f.activation("hidden_activation"), f.activation("classifier_activation")
    layers = f.int("num_hidden_layers")
    theta, theta_local = _thetas(values, f)
    return {
        **_sizes(f),
        "max_length": f.int("max_position_embeddings"),
        "norm_eps": f.float("norm_eps"),
        "norm_bias": f.bool("norm_bias"),
        "rope_theta": theta,
        "rope_theta_local": theta_local,
        "global_every": _global_every(values.get("layer_types"), layers, f.int("global_attn_every_n_layers")),
        "local_window": f.int("local_attention"),
        "activation": activation,
        "head_activation": "" if head_activation == activation else head_activation,
        "attention_bias": f.bool("attention_bias"),
        "mlp_bias": f.bool("mlp_bias"),
        "head_bias": f.bool("classifier_bias"),
        "decoder_bias": f.bool("decoder_bias"),
        "dropout": f.float("mlp_dropout"),
        "attention_dropout": f.float("attention_dropout"),
    }


def _thetas(values: Mapping[str, Any], f: _Fields) -> tuple[float, float]:
    """The rotary bases of global and local layers, in the form of transformers 5 or an older one."""
    if values.get("rope_scaling"):
        raise UserError("rope_scaling is not supported: only rotary positions of type 'default' are")
    found = {"full_attention": f.float("global_rope_theta"), "sliding_attention": f.float("local_rope_theta")}
    if "local_rope_theta" in values and values["local_rope_theta"] is None:
        found["sliding_attention"] = found["full_attention"]
    for kind in found:
        given = (values.get("rope_parameters") or {}).get(kind) or {}
        if given.get("rope_type", "default") != "default":
            raise UserError(f"rope_parameters has type {given['rope_type']!r}: only 'default' is supported")
        found[kind] = float(given.get("rope_theta", found[kind]))
    return found["full_attention"], found["sliding_attention"]


def _global_every(kinds: list[str] | None, layers: int, every: int) -> int:
    """The n with which layers 0, n, 2n, … attend globally."""
    if kinds is None:
        return every
    if len(kinds) != layers:
        raise UserError(f"layer_types lists {len(kinds)} layers, num_hidden_layers says {layers}")
    for n in range(1, layers + 1):
        if kinds == layer_types(layers, n):
            return n
    raise UserError(f"layer_types is {kinds}: only layers 0, n, 2n, … can be 'full_attention', the others local")


def layer_types(layers: int, every: int) -> list[str]:
    """transformers' names of what each layer attends to."""
    return ["sliding_attention" if i % every else "full_attention" for i in range(layers)]


def hf_config(c: ModelConfig, pad: int, cls: int | None, sep: int | None) -> dict[str, Any]:
    """config.json: the family's own field names, with the switches that its architecture has."""
    common = {
        "architectures": [ARCHITECTURES[c.family]],
        "model_type": c.family,
        "vocab_size": c.vocab_size,
        "pad_token_id": pad,
        "bos_token_id": cls,
        "eos_token_id": sep,
        "tie_word_embeddings": c.tied,
        "initializer_range": c.init_std,
        "dtype": "float32",
    }
    activation = ACTIVATIONS[c.activation]
    if c.family == "distilbert":
        return common | {
            "dim": c.width,
            "n_layers": c.layers,
            "n_heads": c.heads,
            "hidden_dim": c.ff_width,
            "max_position_embeddings": c.max_length,
            "sinusoidal_pos_embds": False,
            "activation": activation,
            "dropout": c.dropout,
            "attention_dropout": c.attention_dropout,
        }
    common |= {
        "hidden_size": c.width,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "intermediate_size": c.ff_width,
    }
    if c.family == "modernbert":
        thetas = {"full_attention": c.rope_theta, "sliding_attention": c.rope_theta_local}
        return common | {
            "max_position_embeddings": c.max_length,
            "hidden_activation": activation,
            "norm_eps": c.norm_eps,
            "norm_bias": c.norm_bias,
            "attention_bias": c.attention_bias,
            "mlp_bias": c.mlp_bias,
            "decoder_bias": c.decoder_bias,
            "classifier_bias": c.head_bias,
            "classifier_activation": ACTIVATIONS[c.head_activation or c.activation],
            "attention_dropout": c.attention_dropout,
            "embedding_dropout": c.dropout,
            "mlp_dropout": c.dropout,
            "layer_types": layer_types(c.layers, c.global_every),
            "local_attention": c.local_window,
            "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
            "global_attn_every_n_layers": c.global_every,  # these three: transformers before 5, transformers.js
            "global_rope_theta": c.rope_theta,
            "local_rope_theta": c.rope_theta_local,
            "cls_token_id": cls,
            "sep_token_id": sep,
        }
    common |= {
        "max_position_embeddings": c.max_length + c.position_offset,
        "type_vocab_size": c.token_types,
        "hidden_act": activation,
        "layer_norm_eps": c.norm_eps,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
    }
    if c.family == "albert":
        common |= {
            "embedding_size": c.table_width,
            "num_hidden_groups": c.layer_groups or c.layers,
            "inner_group_num": 1,
        }
    return common


def _meaning(c: ModelConfig) -> ModelConfig:
    """The same model with every field that has no effect, or two spellings, written in one way."""
    if c.positions == "learned":
        c = replace(c, rope_theta=10_000.0)
    if c.positions == "learned" or c.global_every == 1:
        c = replace(c, rope_theta_local=10_000.0)
    if c.global_every == 1:
        c = replace(c, local_window=128)
    groups = c.layer_groups if c.family != "albert" else c.layer_groups or c.layers
    head = "" if c.head_activation == c.activation else c.head_activation
    return replace(c, global_every=min(c.global_every, c.layers), layer_groups=groups, head_activation=head)


def check_expressible(c: ModelConfig, pad: int) -> None:
    """Raises UserError where the family's config.json has no field for a switch of this model."""
    ours, back = _meaning(c), _meaning(from_hf(hf_config(c, pad, None, None), c.family))
    for field in dataclasses.fields(ModelConfig):
        mine, theirs = getattr(ours, field.name), getattr(back, field.name)
        if mine != theirs:
            raise UserError(
                f"a {c.family} model in Hugging Face's layout has {field.name} {theirs!r}, this one has {mine!r}: "
                "train it without that option to export it"
            )
