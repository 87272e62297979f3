"""Frozen dataclasses that hold every default, and their JSON form; named sets of values are in `presets.py`.

A field is declared once, here; the command line, `run.json` and the code all read this declaration. Where its values
are the keys of a table in a higher room, its metadata names the table.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from jax_mlm.errors import shown

T = TypeVar("T")
Json = dict[str, Any]  # an object as the json module has it; who reads it knows its fields
Family = Literal["bert", "roberta", "albert", "distilbert", "modernbert", "esm", "xlm-roberta", "camembert"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]
Range = tuple[float, float]
POSITIVE = (math.ulp(0.0), 1e30)
LARGEST = (1 << 31) - 1
"""Steps are counted in 32 bits."""
LAST_SEED = (1 << 32) - 1
SHARE = (0.0, math.nextafter(1.0, 0.0))
"""From 0 to less than 1."""
SIZES: Mapping[str, tuple[int, int]] = {
    "vocab_size": (0, 1 << 26),
    **dict.fromkeys(("width", "heads", "ff_width", "global_every"), (1, 1 << 20)),
    "layers": (1, 1_000),
    "max_length": (1, 1 << 24),
    **dict.fromkeys(
        ("embedding_width", "layer_groups", "position_offset", "local_window", "token_types"), (0, 1 << 20)
    ),
    "mask_id": (-1, 1 << 26),
}
"""Field of a model → the smallest and the largest size; more is a slip, and no machine holds it."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the encoder: one description for the six families of `model/encoder.py`."""

    family: Family = "modernbert"
    """The Hugging Face model type that these switches describe: bert, roberta (or its namesakes xlm-roberta and
    camembert), albert, distilbert, modernbert or esm."""
    vocab_size: int = 0
    """Rows of the embedding table; 0 takes the tokenizer's size, rounded up to a multiple of 64."""
    width: int = 256
    """Size D of the hidden states."""
    layers: int = 4
    """Number of encoder layers."""
    heads: int = 4
    """Attention heads H; must divide the width."""
    ff_width: int = 384
    """Size F of the feed-forward layer (of each half of it, when gated)."""
    max_length: int = 1024
    """Longest sequence in tokens, special tokens included."""
    embedding_width: int = 0
    """Width of the embedding table where a dense layer widens it (ALBERT); 0: the encoder's, without such a layer."""
    layer_groups: int = 0
    """Distinct sets of layer parameters (ALBERT shares them); 0 means that every layer has its own."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm or RMSNorm."""
    norm_first: bool = True
    """Normalise before each block (ModernBERT) instead of after it (BERT)."""
    norm_bias: bool = False
    """Give LayerNorm a bias."""
    embedding_norm: bool = True
    """Normalise the embeddings; pre-norm models then leave out the norm before the first attention (ESM-2 keeps it)."""
    norm_eps: float = 1e-5
    """Added to the variance in each norm."""
    positions: Literal["learned", "rope"] = "rope"
    """A learned table added to the embedding, or rotary embedding of queries and keys."""
    position_offset: int = 0
    """First row of the position table that is used (RoBERTa: pad id + 1)."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies in layers that attend globally."""
    rope_theta_local: float = 10_000.0
    """The same in layers that attend to a window."""
    global_every: int = 1
    """Layers 0, n, 2n, … attend globally, the others to a window; 1 makes all of them global."""
    local_window: int = 128
    """Window in tokens, half of it on each side, of the layers that attend locally."""
    token_types: int = 0
    """Rows of the token type table; 0 for families without one."""
    token_dropout: bool = False
    """Zero the embeddings of mask tokens and scale the others by the share that is left of them (ESM-2)."""
    mask_id: int = -1
    """The mask token that token dropout zeroes; -1 takes the tokenizer's."""
    activation: Activation = "gelu"
    """Non-linearity of the feed-forward layer."""
    head_activation: Literal["", Activation] = ""
    """Non-linearity of the head, where it differs (RoBERTa: gelu, whatever the layers use); empty takes theirs."""
    gated: bool = True
    """Multiply by a linear gate (GeGLU)."""
    attention_bias: bool = False
    """Biases in the attention projections."""
    mlp_bias: bool = False
    """Biases in the feed-forward layer."""
    head_bias: bool = False
    """Bias in the dense layer of the head."""
    decoder_bias: bool = True
    """Bias of the vocabulary projection."""
    tied: bool = True
    """Use the embedding table as the vocabulary projection."""
    dropout: float = 0.0
    """Dropout on embeddings and on the output of each block."""
    attention_dropout: float = 0.0
    """Dropout on attention probabilities."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                **SIZES,
                **dict.fromkeys(("dropout", "attention_dropout"), SHARE),
                **dict.fromkeys(("rope_theta", "rope_theta_local"), POSITIVE),
                **dict.fromkeys(("norm_eps", "init_std"), (0, 1e30)),
            },
        )
        if self.width % self.heads:
            raise ValueError(f"--width {self.width} is not a multiple of --heads {self.heads}")
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even head size, not {self.head_width} (--width / --heads)")
        if self.layer_groups and self.layers % self.layer_groups:
            raise ValueError(f"--layers {self.layers} is not a multiple of --layer-groups {self.layer_groups}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def table_width(self) -> int:
        """Return the columns of the embedding table."""
        return self.embedding_width or self.width

    def norms_attention(self, layer: int) -> bool:
        """Return whether a layer has a norm of its attention: all but one whose input is normalised already."""
        return not (self.norm_first and self.embedding_norm and layer == 0)

    def window(self, layer: int) -> int | None:
        """Return how many tokens are visible on each side in this layer; None where attention is global."""
        return None if layer % self.global_every == 0 else self.local_window // 2


@dataclass(frozen=True)
class DataConfig:
    """How text becomes rows of tokens."""

    length: int = 128
    """Tokens in a training row, special tokens included."""
    tokenizer_kind: Literal["auto", "wordpiece", "bpe", "unigram", "word", "protein"] = "auto"
    """The tokenizer made when --tokenizer is not given; auto chooses one to learn by a sample of the text; protein is
    ESM-2's alphabet, a token a letter."""
    tokenizer_size: int = 0
    """Its vocabulary, special tokens included; 0 takes --tokenizer-limit, or less where the text supports less."""
    tokenizer_limit: int = 8192
    """Largest vocabulary taken when --tokenizer-size is 0."""
    lowercase: bool = False
    """Lower-case the text in the tokenizer trained on the data."""
    strip_accents: bool = False
    """Remove accents and other combining marks in it as well: é becomes e, が becomes か."""
    special_tokens: Literal["bert", "roberta"] = "bert"
    """Its special tokens: [PAD] [UNK] [CLS] [SEP] [MASK], or <s> <pad> </s> <unk> <mask>, in this order."""
    text_field: str = "text"
    """The field of JSON lines, or the column of CSV, TSV and Parquet, that holds the text."""
    document: Literal["line", "blank", "file"] = "line"
    """What a document is in plain text: a line, lines up to a blank one, or the whole file."""
    pack: Literal["document", "plain"] = "document"
    """Attention stays inside a document, or crosses into its neighbours in the row."""
    dedup: bool = False
    """Leave out documents that stand in the text already, and those to validate on from the text to train on."""
    valid_fraction: float = 0.01
    """Part of the documents held out for validation when --valid is not given."""
    workers: int = 0
    """Processes that tokenise; 0 takes all cores."""
    cache: str = ""
    """Folder of prepared tokens; empty means $JAX_MLM_CACHE, else ~/.cache/jax_mlm."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "length": (1, 1 << 24),
                "tokenizer_size": (0, 1 << 24),
                "tokenizer_limit": (1, 1 << 24),
                "valid_fraction": (0, 1),
                "workers": (0, 1024),
            },
        )


@dataclass(frozen=True)
class MaskConfig:
    """Which tokens are hidden, and what replaces them."""

    mask_rule: str = field(default="token", metadata={"choices": "jax_mlm.tasks.masking.RULES"})
    """What is chosen as one: a token, a word, or a span."""
    mask_rate: float = 0.15
    """Part of the eligible tokens that are targets."""
    mask_rate_end: float = -1.0
    """Rate at the last step, reached linearly; negative keeps the rate constant, as --mask-rate alone does."""
    mask_token: float = 0.8
    """Part of the targets replaced by the mask token."""
    mask_random: float = 0.1
    """Part replaced by a random token; the rest stays as it is."""
    span_mean: float = 3.0
    """Mean length in tokens of a span."""
    span_max: int = 10
    """Longest span in tokens."""

    def __post_init__(self) -> None:
        if not 0 < self.mask_rate <= 1 or not self.mask_rate_end <= 1:
            raise ValueError("--mask-rate and --mask-rate-end must lie between 0 and 1")
        if not (self.mask_token >= 0 and self.mask_random >= 0 and self.mask_token + self.mask_random <= 1 + 1e-9):
            raise ValueError("--mask-token and --mask-random must not be negative, and at most 1 together")
        check_ranges(self, {"span_mean": (1, 1 << 20), "span_max": (1, 1 << 20)})

    @property
    def constant(self) -> MaskConfig:
        """Return these masks at the rate that they end with."""
        return self if self.mask_rate_end < 0 else replace(self, mask_rate=self.mask_rate_end, mask_rate_end=-1.0)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: str = field(default="adamw", metadata={"choices": "jax_mlm.train.optim.OPTIMIZERS"})
    """AdamW; Muon for the hidden matrices and AdamW for the rest; or LAMB, for very large batches."""
    lr: float = 2e-3
    """Peak learning rate of AdamW and LAMB."""
    muon_lr: float = 0.012
    """Peak learning rate of Muon's matrices."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """Learning rate after warm-up: stable then decay, cosine or linear to zero, or constant."""
    warmup: float = 0.05
    """Part of the steps that the learning rate rises over."""
    decay: float = 0.3
    """Part of the steps that the learning rate falls to zero over (wsd)."""
    beta1: float = 0.9
    """Weight of the past in AdamW's mean of the gradients."""
    beta2: float = 0.98
    """The same in its mean of their squares."""
    adam_eps: float = 1e-8
    """Added to the root of that mean."""
    weight_decay: float = 0.01
    """Decoupled, on matrices only: no norms, no biases."""
    clip: float = 1.0
    """Largest global norm of the gradient; 0 leaves it alone."""
    skip_spikes: float = 0.0
    """Skip the update of a step whose loss is this many times the median of the last 128 or more; 0 skips none."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                **dict.fromkeys(("lr", "muon_lr", "adam_eps"), POSITIVE),
                **dict.fromkeys(("beta1", "beta2"), SHARE),
                **dict.fromkeys(("weight_decay", "clip", "skip_spikes"), (0, 1e30)),
            },
        )
        if 0 < self.skip_spikes <= 1:
            raise ValueError(f"--skip-spikes must be above 1, or 0 for none, not {self.skip_spikes}")
        if not 0 <= self.warmup <= 1 or not 0 <= self.decay <= 1 or self.warmup + self.decay > 1:
            raise ValueError("--warmup and --decay must lie between 0 and 1, and be at most 1 together")


@dataclass(frozen=True)
class DistilConfig:
    """Learning from a larger model; the weights are those of DistilBERT."""

    distil: str = ""
    """The teacher: a run or a Hugging Face directory, whose probabilities and hidden states are learned too."""
    distil_soft: float = 5.0
    """Weight of the teacher's softened probabilities at the hidden tokens."""
    distil_mlm: float = 2.0
    """Weight of the hidden tokens themselves."""
    distil_cosine: float = 1.0
    """Weight of the angle between the last hidden states, where both models have one width."""
    distil_temperature: float = 2.0
    """What both models' logits are divided by before their probabilities are compared."""

    def __post_init__(self) -> None:
        weights = ("distil_soft", "distil_mlm", "distil_cosine")
        check_ranges(self, {**dict.fromkeys(weights, (0, 1e30)), "distil_temperature": POSITIVE})
        if not any(getattr(self, name) for name in weights):
            raise ValueError("--distil-soft, --distil-mlm and --distil-cosine must not all be 0")


@dataclass(frozen=True)
class TaskConfig:
    """What a model was fine-tuned for: what its head computes, and how texts are read for it."""

    kind: Literal["classify", "tag", "answer"]
    labels: tuple[str, ...] = ()
    """In the order of the logits: the classes, or the tags of IOB2; none of a regression, nor of answers."""
    problem: Literal["single", "multi", "regression"] = "single"
    """One label for a text, any number of them, or a number."""
    pair: bool = False
    """Whether two texts are judged together."""
    pooling: Literal["cls", "mean"] = "cls"
    """What stands for a text: the hidden state of its first token, or the mean over all."""
    overlap: int = 0
    """Tokens that two windows of a long text have in common."""
    metric: str = "accuracy"
    """By which checkpoints are compared."""
    columns: tuple[str, str, str] = ("", "", "")
    """The columns of the text, of its pair and of the label in the file that was learned."""
    max_answer: int = 0
    """Tokens of the longest answer that is given to a question."""
    no_answer: bool = False
    """Whether a question may have no answer."""

    @property
    def outputs(self) -> int:
        """Return the number of logits: of an answer, those of its first and of its last token."""
        return 2 if self.kind == "answer" else len(self.labels) or 1


@dataclass(frozen=True)
class TrainConfig:
    """Pretrain a masked language model: everything that determines a run, except the bytes of the data."""

    preset: str = "sentence"
    """Named set of defaults: sentence, nano, micro, tiny, small, base, large, or a paper's: bert-base, bert-large,
    roberta-base, roberta-large, albert-base, albert-large, distilbert-base, modernbert-base, modernbert-large,
    esm2-t6-8m."""
    data: tuple[str, ...] = ()
    """Text to train on: files, folders or globs (.txt, .jsonl, .csv, .parquet, compressed or not); - is standard
    input."""
    valid: tuple[str, ...] = ()
    """Text to validate on; without it a part of the data is held out."""
    tokenizer: str = ""
    """A tokenizer.json to use; without it one is trained on the data, or that of --init is taken."""
    init: str = ""
    """Continue from the weights of a run or of a Hugging Face directory, with a fresh optimizer."""
    add_tokens: tuple[str, ...] = ()
    """Words to add to the tokenizer of --init, or files of them, one a line; their embeddings are learned."""
    out: str = ""
    """The run directory; empty takes the first free runs/PRESET, runs/PRESET-2, …"""
    steps: int = 0
    """Optimizer steps; 0 where a budget decides."""
    budget: str = ""
    """Train for this long instead of a number of steps: 90s, 30m, 2h. Text without --preset, --init or --distil gets
    the preset and the batch that suit the time."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint."""
    seed: int = 0
    """Seed of the weights, the order of the data and the masks."""
    batch: int = 32
    """Rows in an optimizer step, over all devices."""
    accumulate: int = 1
    """Microbatches that an optimizer step is computed in. 0, which accelerators take unless a number is given, is as
    few as fit their memory."""
    embeddings: Literal["random", "counted"] = "random"
    """What new weights begin with: random numbers, or vectors of what stands near each token in the text, counted in
    seconds, with attention and a head that hand them on."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the computation; auto is bfloat16 where the hardware multiplies it fast, else float32. Parameters are
    float32."""
    eval_every: int = 0
    """Steps between validations; 0 makes about ten of them."""
    eval_rows: int = 512
    """Rows of the validation set used while training; 0 uses all of it."""
    mesh: str = ""
    """Devices along each axis: data=4,fsdp=2,tensor=1, say. Rows are divided over data and fsdp, the weights and the
    optimizer's state over fsdp and tensor; empty puts all devices along data."""
    multi_host: bool = False
    """Join the other hosts that run this command, as a TPU pod, Slurm or Open MPI tell of them."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    profile: int = 0
    """Trace this many steps, and write to profile/ in the run directory where their time goes."""
    track: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Send the figures to a tracker as well (pip install 'jax-mlm[NAME]')."""
    model: ModelConfig = field(default_factory=ModelConfig)
    corpus: DataConfig = field(default_factory=DataConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                **dict.fromkeys(("steps", "eval_every", "eval_rows", "profile"), (0, LARGEST)),
                "log_every": (1, LARGEST),
                "seed": (0, LAST_SEED),
                "batch": (1, 1 << 24),
                "accumulate": (0, 1 << 24),
            },
        )
        if self.accumulate and self.batch % self.accumulate:
            raise ValueError(f"--batch {self.batch} is not a multiple of --accumulate {self.accumulate}")
        if self.add_tokens and (self.tokenizer or not self.init):
            raise ValueError("--add-tokens adds to the tokenizer of --init: give --init, and no --tokenizer")
        if self.steps and self.budget:
            raise ValueError("--steps and --budget exclude each other: give one of them")
        if self.corpus.length > self.model.max_length:
            raise ValueError(f"--length {self.corpus.length} exceeds --max-length {self.model.max_length}")


def check_ranges(config: object, ranges: Mapping[str, Range]) -> None:
    """Raise a ValueError for a field outside its range; what is not a number is in none."""
    for name, (least, most) in ranges.items():
        option, value = f"--{name.replace('_', '-')}", getattr(config, name)
        if value < least:
            bound = "above 0" if least == POSITIVE[0] else f"at least {least:g}"
            raise ValueError(f"{option} must be {bound}, not {value}")
        if not value <= most:
            bound = "less than 1" if most == SHARE[1] else f"at most {most:g}" if most == 1e30 else f"at most {most}"
            raise ValueError(f"{option} must be {bound}, not {value}")


def to_json(config: TrainConfig) -> Json:
    """Plain nested dict of a config; `from_json` is its inverse."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(kind: type[T], values: Json) -> T:
    """Build a config of class `kind`; a missing field takes its default.

    Raises:
        ValueError: an unknown field, or a value of another type or outside its range.
    """
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(f"{shown(values)} where the fields of a {kind.__name__} were expected")
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r} in a {kind.__name__}")
    made: Json = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            made[name] = from_json(typing.cast(type, hint), value)
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
            if not _fits(made[name], hint):
                raise ValueError(f"{name} is {shown(value)}")
    return kind(**made)


def _fits(value: object, hint: Any) -> bool:  # Any: a type annotation
    """Return whether a value has the type of a field."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(each, arguments[0]) for each in value)
    if arguments:
        return value in arguments
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)
