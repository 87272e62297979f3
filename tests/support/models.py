"""Small models, with parameters that reveal an error."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, get_args

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from mlm_onnx.convert.reference import Reference

from jax_mlm.config import Activation, ModelConfig, TaskConfig
from jax_mlm.model.encoder import Inputs
from jax_mlm.model.heads import make_forward
from jax_mlm.model.params import expected_shapes
from jax_mlm.presets import PRESETS

# Every switch of the architecture, for comparisons with graphs.
SHAPES = ((1, 1, 1), (1, 2, 2), (2, 7, 3), (1, 18, 1), (3, 18, 2), (5, 33, 4), (2, 48, 48))
TINY = {"vocab_size": 96, "width": 32, "layers": 2, "heads": 4, "ff_width": 48, "max_length": 48}
BERT = replace(PRESETS["bert-base"].model, **TINY)
MODERN = ModelConfig(**TINY)
CONFIGS = {
    "modernbert": MODERN,
    "modernbert-local": replace(MODERN, layers=3, global_every=3, local_window=6, rope_theta=160_000.0),
    "last-layer-local": replace(MODERN, global_every=2, local_window=10, norm_bias=True),
    "every-bias": replace(MODERN, norm_bias=True, attention_bias=True, mlp_bias=True, head_bias=True),
    "rms": replace(MODERN, norm="rms", norm_eps=1e-2, activation="silu"),
    "untied": replace(MODERN, tied=False, decoder_bias=False, activation="relu"),
    "rope-with-types": replace(MODERN, token_types=2, gated=False, norm_first=False, norm_bias=True),
    "bert": BERT,
    "bert-pre-norm": replace(BERT, norm_first=True, activation="silu", layers=1),
    "roberta": replace(BERT, family="roberta", position_offset=2, token_types=1, norm_eps=1e-5),
    "distilbert": replace(BERT, family="distilbert", token_types=0),
    "albert": replace(BERT, family="albert", embedding_width=16, layer_groups=1, activation="gelu_tanh"),
    "albert-two-groups": replace(BERT, family="albert", embedding_width=24, layers=4, layer_groups=2, tied=False),
    "esm": replace(
        BERT,
        family="esm",
        norm_first=True,
        embedding_norm=False,
        positions="rope",
        token_types=0,
        norm_eps=1e-5,
        token_dropout=True,
        mask_id=5,
    ),
    "odd-head": replace(BERT, width=30, heads=6, ff_width=31),
    "rms-learned": replace(BERT, norm="rms", gated=True, decoder_bias=False),
}
USUAL = ("modernbert-local", "every-bias", "bert", "roberta", "albert", "esm")
"""Those that differ most, for comparisons whose other cases are slow tests."""
USED = {config.activation for config in CONFIGS.values()}
CONFIGS |= {name: replace(MODERN, activation=name) for name in get_args(Activation) if name not in USED}

# One a family, for the way to Hugging Face and back.
HF_TINY = {"vocab_size": 64, "width": 16, "layers": 2, "heads": 2, "ff_width": 24, "max_length": 32}
HF_BERT = replace(PRESETS["bert-base"].model, **HF_TINY)
HF_ROBERTA = replace(HF_BERT, family="roberta", position_offset=1, token_types=1)
MODELS: dict[str, ModelConfig] = {
    "bert": HF_BERT,
    "roberta": HF_ROBERTA,
    "albert": replace(HF_BERT, family="albert", embedding_width=8, layer_groups=1, activation="gelu_tanh"),
    "distilbert": replace(HF_BERT, family="distilbert", token_types=0),
    "modernbert": ModelConfig(**HF_TINY, global_every=2, rope_theta=160_000.0, local_window=8),
    "esm": replace(CONFIGS["esm"], **HF_TINY, mask_id=2),
    "xlm-roberta": replace(HF_ROBERTA, family="xlm-roberta"),
    "camembert": replace(HF_ROBERTA, family="camembert"),
}

NAMESAKES = ("xlm-roberta", "camembert")
EACH_FAMILY = [pytest.param(name, marks=pytest.mark.slow if name in NAMESAKES else ()) for name in MODELS]
"""Families to try; two differ from RoBERTa in nothing but the name, and are slow tests."""

TWO_FAMILIES = [pytest.param(name, marks=() if name in ("bert", "modernbert") else pytest.mark.slow) for name in MODELS]
"""Families to try: those whose positions differ most, learned and rotary; the others are slow tests."""

SHAPE = {"vocab_size": 128, "width": 16, "layers": 1, "heads": 2, "ff_width": 24, "max_length": 32}


@cache
def _traced(config: ModelConfig, task: TaskConfig | None) -> dict[tuple[str, ...], tuple[int, ...]]:
    return expected_shapes(config, task)


def cached_shapes(config: ModelConfig, task: TaskConfig | None = None) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Return `expected_shapes`; a model is traced once, since that takes longer than most of what is tested."""
    return dict(_traced(config, task))


def shapes_of(config: ModelConfig, task: TaskConfig | None = None) -> Any:
    """Return the parameters' shapes as their tree."""
    shapes = cached_shapes(config, task)
    return unflatten_dict({path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()})


def randomised(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Return parameters far from their initial values, norms and biases too, so that a forgotten switch shows."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = path[-1].key
        match name:
            case "scale":
                values = rng.normal(1, 0.2, leaf.shape)
            case "kernel":
                values = rng.normal(0, 1.2 / np.sqrt(leaf.shape[0]), leaf.shape)
            case _:
                values = rng.normal(0, 0.5, leaf.shape)
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(config))


def softened(model: ModelConfig) -> dict[str, Any]:
    """Return parameters whose answers differ everywhere, with less confidence than those of `randomised`."""
    return jax.tree.map(lambda x: x * 0.3 if x.ndim == 2 else x, randomised(model))


class Everywhere:
    """The JAX model of a configuration with randomised parameters, at every position of rows padded to one shape.

    It compiles once, for all that graphs are compared with: logits, padded logits and embeddings.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config, self._reference = config, Reference(config, randomised(config), config.vocab_size)

    def _answer(
        self, ids: np.ndarray, segments: np.ndarray, types: np.ndarray, counted: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        b, s = ids.shape
        rows, columns = (max(sizes) for sizes in list(zip(*SHAPES, strict=True))[:2])
        padded = [np.pad(each, ((0, rows - b), (0, columns - s))) for each in (ids, segments, types)]
        if not self.config.token_types:
            padded[2] = None
        at = np.broadcast_to(np.arange(columns), (rows, columns))
        logits, embeddings = self._reference._answer(*padded, at, counted)
        return logits[:b, :s], embeddings[:b]

    def logits(self, input_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        everywhere, _ = self._answer(input_ids, np.ones_like(input_ids), np.zeros_like(input_ids))
        return np.take_along_axis(everywhere, positions[..., None], axis=1)

    def padded_logits(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray
    ) -> np.ndarray:
        return self._answer(input_ids, attention_mask, token_type_ids, counted=True)[0]

    def embedding(self, input_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return self._answer(input_ids, np.ones_like(input_ids), np.zeros_like(input_ids))[1]


@cache
def reference(name: str) -> Everywhere:
    """Return what the graphs of `CONFIGS[name]` have to compute."""
    return Everywhere(CONFIGS[name])


def assert_trees_equal(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def logits_of(model: ModelConfig, params: Any, ids: list[int]) -> np.ndarray:
    """Return the logits [S, V] of one text."""
    tokens = np.asarray([ids], np.int32)
    at = np.arange(len(ids), dtype=np.int32)[None]
    return np.asarray(jax.jit(make_forward(model))(params, Inputs(tokens, np.ones_like(tokens), at), at))[0]
