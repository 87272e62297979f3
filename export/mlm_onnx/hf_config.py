"""Hugging Face's config.json and tokenizer_config.json for our models, as transformers 5 reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_mlm.config import ModelConfig

ARCHITECTURES = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "albert": "AlbertForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "modernbert": "ModernBertForMaskedLM",
}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}


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
        kinds = ["full_attention" if c.window(i) is None else "sliding_attention" for i in range(c.layers)]
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
            "classifier_activation": activation,
            "attention_dropout": c.attention_dropout,
            "embedding_dropout": c.dropout,
            "mlp_dropout": c.dropout,
            "layer_types": kinds,
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


def hf_tokenizer_config(special: Mapping[str, str | None], max_length: int) -> dict[str, Any]:
    """tokenizer_config.json; `special` maps pad, mask, unk, cls, sep to the token's text."""
    named = {f"{role}_token": text for role, text in special.items() if text is not None}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **named}
