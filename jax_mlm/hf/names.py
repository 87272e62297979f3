"""Where each family of Hugging Face keeps our arrays: one table of names a family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from jax_mlm.config import Family, ModelConfig, TaskConfig


@dataclass(frozen=True)
class Names:
    """Where a family keeps the modules of `jax_mlm.model`; `{i}` stands for the layer."""

    prefix: str
    """Before every name but those of the head; encoders saved alone lack it."""
    tokens: str
    embedding_norm: str
    layer: str
    qkv: tuple[str, ...]
    out: str
    attention_norm: str
    up: str
    down: str
    mlp_norm: str
    head: str
    head_norm: str
    decoder: str
    bias: tuple[str, ...]
    """Names of the decoder's bias; the first that is there counts."""
    positions: str = ""
    types: str = ""
    widen: str = ""
    final_norm: str = ""


_BERT = {
    "tokens": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "layer": "encoder.layer.{i}.",
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
_ROBERTA = Names(
    **_BERT,
    prefix="roberta.",
    head="lm_head.dense",
    head_norm="lm_head.layer_norm",
    decoder="lm_head.decoder",
    bias=("lm_head.decoder.bias", "lm_head.bias"),
)
NAMES: Mapping[Family, Names] = {
    "bert": Names(
        **_BERT,
        prefix="bert.",
        head="cls.predictions.transform.dense",
        head_norm="cls.predictions.transform.LayerNorm",
        decoder="cls.predictions.decoder",
        bias=("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "albert": Names(
        prefix="albert.",
        tokens="embeddings.word_embeddings",
        positions="embeddings.position_embeddings",
        types="embeddings.token_type_embeddings",
        embedding_norm="embeddings.LayerNorm",
        widen="encoder.embedding_hidden_mapping_in",
        layer="encoder.albert_layer_groups.{i}.albert_layers.0.",
        qkv=("attention.query", "attention.key", "attention.value"),
        out="attention.dense",
        attention_norm="attention.LayerNorm",
        up="ffn",
        down="ffn_output",
        mlp_norm="full_layer_layer_norm",
        head="predictions.dense",
        head_norm="predictions.LayerNorm",
        decoder="predictions.decoder",
        bias=("predictions.decoder.bias", "predictions.bias"),
    ),
    "distilbert": Names(
        prefix="distilbert.",
        tokens="embeddings.word_embeddings",
        positions="embeddings.position_embeddings",
        embedding_norm="embeddings.LayerNorm",
        layer="transformer.layer.{i}.",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        out="attention.out_lin",
        attention_norm="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        mlp_norm="output_layer_norm",
        head="vocab_transform",
        head_norm="vocab_layer_norm",
        decoder="vocab_projector",
        bias=("vocab_projector.bias",),
    ),
    "modernbert": Names(
        prefix="model.",
        tokens="embeddings.tok_embeddings",
        embedding_norm="embeddings.norm",
        layer="layers.{i}.",
        qkv=("attn.Wqkv",),
        out="attn.Wo",
        attention_norm="attn_norm",
        up="mlp.Wi",
        down="mlp.Wo",
        mlp_norm="mlp_norm",
        final_norm="final_norm",
        head="head.dense",
        head_norm="head.norm",
        decoder="decoder",
        bias=("decoder.bias",),
    ),
    "esm": replace(
        _ROBERTA,
        prefix="esm.",
        attention_norm="attention.LayerNorm",
        mlp_norm="LayerNorm",
        final_norm="encoder.emb_layer_norm_after",
        bias=("lm_head.bias",),
    ),
}


POOLERS: Mapping[Family, str] = {
    "bert": "bert.pooler.dense",
    "albert": "albert.pooler",
    "distilbert": "pre_classifier",
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "esm"), "classifier.dense"),
}
"""Where a family keeps the dense layer before the classifier of texts; ModernBERT has its head there."""


@dataclass(frozen=True)
class Entry:
    """One array of ours, and the tensors that hold it: several where they keep queries, keys and values apart."""

    path: tuple[str, ...]
    names: tuple[str, ...]
    """Full names; the arrays are joined along their first axis."""
    kernel: bool = False
    """Theirs is the transpose of ours."""


def entries(c: ModelConfig, task: TaskConfig | None = None) -> Iterator[Entry]:
    """Return every array of this model under its family's names, with the head of masked words or of a task."""
    n = NAMES[c.family]
    yield from body_entries(c)
    if task is not None:
        if c.family == "modernbert":
            yield from _dense(("head",), (n.head,), c.head_bias)
            yield from _norm(c, ("head_norm",), n.head_norm)
        elif task.kind == "classify":
            yield from _dense(("pooler",), (POOLERS[c.family],), True)
        inside = task.kind == "classify" and POOLERS.get(c.family) == "classifier.dense"
        theirs = "classifier.out_proj" if inside else "classifier"
        if task.kind == "answer" and c.family != "modernbert":
            theirs = "qa_outputs"
        yield from _dense(("classifier",), (theirs,), True)
        return
    yield from _dense(("head",), (n.head,), c.head_bias)
    yield from _norm(c, ("head_norm",), n.head_norm)
    if not c.tied:
        yield _table("decoder", n.decoder)
    if c.decoder_bias:
        yield Entry(("decoder_bias",), (n.bias[-1],))


def _table(ours: str, theirs: str) -> Entry:
    return Entry((ours,), (f"{theirs}.weight",))


def _dense(path: tuple[str, ...], theirs: Iterable[str], bias: bool) -> Iterator[Entry]:
    theirs = tuple(theirs)
    yield Entry((*path, "kernel"), tuple(f"{name}.weight" for name in theirs), kernel=True)
    if bias:
        yield Entry((*path, "bias"), tuple(f"{name}.bias" for name in theirs))


def _norm(c: ModelConfig, path: tuple[str, ...], theirs: str) -> Iterator[Entry]:
    yield Entry((*path, "scale"), (f"{theirs}.weight",))
    if c.norm_bias:
        yield Entry((*path, "bias"), (f"{theirs}.bias",))


def body_entries(c: ModelConfig) -> Iterator[Entry]:
    """Return the arrays of the encoder alone."""
    n = NAMES[c.family]
    yield _table("token_table", n.prefix + n.tokens)
    if c.positions == "learned":
        yield _table("position_table", n.prefix + n.positions)
    if c.token_types:
        yield _table("type_table", n.prefix + n.types)
    if c.embedding_norm:
        yield from _norm(c, ("embedding_norm",), n.prefix + n.embedding_norm)
    if c.embedding_width:
        yield from _dense(("widen",), (n.prefix + n.widen,), True)
    for i in range(c.layer_groups or c.layers):
        ours, theirs = f"layer_{i}", n.prefix + n.layer.format(i=i)
        yield from _dense((ours, "attention", "qkv"), (theirs + name for name in n.qkv), c.attention_bias)
        yield from _dense((ours, "attention", "out"), (theirs + n.out,), c.attention_bias)
        if c.norms_attention(i):
            yield from _norm(c, (ours, "attention_norm"), theirs + n.attention_norm)
        yield from _dense((ours, "mlp", "up"), (theirs + n.up,), c.mlp_bias)
        yield from _dense((ours, "mlp", "down"), (theirs + n.down,), c.mlp_bias)
        yield from _norm(c, (ours, "mlp_norm"), theirs + n.mlp_norm)
    if c.norm_first:
        yield from _norm(c, ("final_norm",), n.prefix + n.final_norm)


def family_of(names: Iterable[str]) -> Family | None:
    """Return the family that wrote tensors of these names; None where they fit none.

    XLM-RoBERTa and CamemBERT have RoBERTa's names, and compute what it does.
    """
    every = "\n".join(names)
    marks: tuple[tuple[Family, tuple[str, ...]], ...] = (
        ("modernbert", ("tok_embeddings.", "attn.Wqkv")),
        ("albert", ("albert_layer_groups.",)),
        ("distilbert", ("vocab_transform.", "transformer.layer.", ".q_lin.")),
        ("esm", ("esm.", "emb_layer_norm_after.")),
        ("roberta", ("roberta.", "lm_head.")),
        ("bert", ("bert.", "cls.predictions.", "encoder.layer.")),
    )
    return next((family for family, found in marks if any(mark in every for mark in found)), None)
