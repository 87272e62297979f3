"""Read the weights to continue from, and add tokens or positions to them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from jax_mlm.config import Json, ModelConfig, OptimConfig, TrainConfig
from jax_mlm.data.tokenizer import load_tokenizer, padded_size, size_of
from jax_mlm.errors import UserError
from jax_mlm.hf.directory import open_hf, read_hf
from jax_mlm.model.encoder import Params
from jax_mlm.model.params import leaves
from jax_mlm.presets import PRESETS
from jax_mlm.run.checkpoint import load_params
from jax_mlm.run.directory import RUN_FILE, TOKENIZER_FILE, read_run, read_run_file, read_task
from jax_mlm.train.new_words import with_words, words_of

CONTINUED_LR = 1e-4
"""Largest default learning rate of a model that has learned already: BERT's own."""
FREE = {"vocab_size", "max_length", "mask_id", "dropout", "attention_dropout", "init_std"}
"""Fields of the model that may differ from those of the weights: the first two may only grow."""


@dataclass(frozen=True)
class Initial:
    """A model to continue: its shape, its parameters (float32, numpy) and its tokenizer."""

    model: ModelConfig
    params: Params
    tokenizer: Tokenizer
    origin: Json = field(default_factory=dict)
    """Where it was read: `from` a folder, and the `step` of a run."""
    remarks: tuple[str, ...] = ()
    """What a Hugging Face directory leaves open, and how it was read."""


def read_initial(source: Path) -> Initial:
    """Read the best checkpoint of a run, or the model in a Hugging Face directory.

    Raises:
        UserError: `source` is neither, or is broken.
    """
    if is_run(source):
        if (task := read_task(source)) is not None:
            raise UserError(
                f"{source} was fine-tuned to {task.kind}, and no longer predicts masked words: start from the model "
                "that it began with"
            )
        step, params = load_params(source, "best")
        check_finite(params, source)
        origin = {"from": str(source.resolve()), "step": step}
        return Initial(read_run(source).model, params, load_tokenizer(source / TOKENIZER_FILE), origin)
    imported = read_hf(source)
    check_finite(imported.params, source)
    # JSON keeps the last digit of a Unigram's scores only from its second reading on: read the tokenizer once more, so
    # that this run trains with the one that a resumed run finds in its tokenizer.json.
    tokenizer = Tokenizer.from_str(imported.tokenizer.to_str())
    return Initial(imported.model, imported.params, tokenizer, {"from": str(source.resolve())}, imported.remarks)


def initial_model(source: Path) -> ModelConfig:
    """Return the shape alone of what `read_initial` reads."""
    return read_run(source).model if is_run(source) else open_hf(source)[1]


def check_finite(params: Params, source: Path) -> None:
    """Refuse weights of which one is NaN or infinite, by the name of the array."""
    for path, array in leaves(params).items():
        if not np.isfinite(array).all():
            raise UserError(f"{source} holds weights that are not finite, in {'.'.join(path)}: take other weights")


def is_run(source: Path) -> bool:
    """Return whether a directory is a run, or else a Hugging Face model; a UserError if it is neither."""
    if (source / RUN_FILE).is_file():
        return True
    if (source / "config.json").is_file():
        return False
    raise UserError(f"{source} is neither a run directory ({RUN_FILE}) nor a Hugging Face model (config.json)")


# ---- train --init --------------------------------------------------------------------------------


def continued(preset: TrainConfig, source: Path) -> TrainConfig:
    """Return the preset's recipe for the model of `source`: rows that it can read, a learning rate that spares it."""
    model = initial_model(source)
    return replace(
        preset,
        model=model,
        corpus=replace(preset.corpus, length=min(preset.corpus.length, model.max_length)),
        optim=gentle(preset.optim, CONTINUED_LR),
    )


def start_from(
    config: TrainConfig, say: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
) -> tuple[TrainConfig, Initial]:
    """Load what --init names, with the tokens and the positions that the options ask for, and the config of that model.

    Raises:
        UserError: an option that contradicts the weights, or a tokenizer that does not continue theirs.
    """
    source = Path(config.init)
    start = read_initial(source)
    for remark in start.remarks:
        say(f"--init {source}: {remark}")
    check_shape(config.model, start.model, source)
    refuse_new_tokenizer(config, f"--init {source}")
    before = size_of(start.tokenizer)
    if config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
        check_continues(tokenizer, start.tokenizer, config.tokenizer, source)
    else:
        tokenizer = (
            with_words(start.tokenizer, words_of(config.add_tokens), say) if config.add_tokens else start.tokenizer
        )
    tokens = size_of(tokenizer)
    rows = max(config.model.vocab_size, start.model.vocab_size)
    rows = rows if tokens <= rows else padded_size(tokens, "bpe")
    if tokens > before:
        say(f"{tokens - before} new tokens in a table of {rows} rows (before: {start.model.vocab_size})")
    if config.model.max_length > start.model.max_length:
        say(f"texts of up to {config.model.max_length} tokens (before: {start.model.max_length})")
    spare = start.model.vocab_size - before if tokens > before else 0
    grown = grow(start, rows, config.model.max_length, config.seed, spare)
    model = replace(config.model, vocab_size=rows)
    return replace(config, model=model), replace(grown, model=model, tokenizer=tokenizer)


def origin_of(run: Path, start: Initial | None) -> Json:
    """Return what `run.json` records of the weights that a run began with; a resumed run keeps it."""
    if start is not None:
        return {"init": start.origin}
    before = read_run_file(run).get("data", {}) if (run / RUN_FILE).is_file() else {}
    return {"init": before["init"]} if "init" in before else {}


def refuse_new_tokenizer(config: TrainConfig, brings: str) -> None:
    """Refuse an option of a tokenizer to be trained, where `brings` names what brings one."""
    for name in ("tokenizer_kind", "tokenizer_size", "tokenizer_limit", "lowercase", "strip_accents", "special_tokens"):
        if getattr(config.corpus, name) != getattr(PRESETS[config.preset].corpus, name):
            raise UserError(
                f"--{name.replace('_', '-')} is for a tokenizer trained on the data, but {brings} brings its own: "
                "leave it out"
            )


def check_shape(asked: ModelConfig, start: ModelConfig, source: Path) -> None:
    """Refuse an option that the weights contradict, by its name."""
    for name in (f.name for f in dataclasses.fields(ModelConfig)):
        mine, theirs = getattr(asked, name), getattr(start, name)
        word = name.replace("_", "-")
        option = f"--{'' if mine else 'no-'}{word}" if isinstance(mine, bool) else f"--{word} {mine}"
        if name not in FREE and mine != theirs:
            raise UserError(f"{option} contradicts the weights of --init {source}, where it is {theirs}: leave it out")
        if name in ("vocab_size", "max_length") and mine < theirs:
            raise UserError(f"{option} is less than the {theirs} of --init {source}: weights are added, never cut off")


def check_continues(new: Tokenizer, old: Tokenizer, file: str, source: Path) -> None:
    """Refuse a tokenizer in which a token of the old one is missing or has a different id."""
    ids = new.get_vocab(with_added_tokens=True)
    for token, id in sorted(old.get_vocab(with_added_tokens=True).items(), key=lambda entry: entry[1]):
        if ids.get(token) != id:
            there = f"has the id {ids[token]}" if token in ids else "is missing"
            raise UserError(
                f"--tokenizer {file} does not continue that of --init {source}: the token {token!r} with id {id} "
                f"{there} in it; leave --tokenizer out (--add-tokens adds words)"
            )


def grow(start: Initial, vocab_size: int, max_length: int, seed: int = 0, spare: int = 0) -> Initial:
    """Return the model with at least `vocab_size` embeddings and `max_length` positions; what was there is unchanged.

    New tokens start at the mean of the old ones plus noise of the initial deviation (Hewitt 2021), so that they are
    likely at first as an average token is; so do the last `spare` rows, which stood for no token and were only ever
    pushed away. New learned positions repeat the old ones (Beltagy et al. 2020); rotary ones need nothing.
    """
    assert start.params is not None
    model, params = start.model, dict(start.params)
    rng = np.random.default_rng(seed)
    rows = max(vocab_size, model.vocab_size)
    kept = model.vocab_size - spare
    if rows > kept:
        for name in ("token_table", "decoder"):
            if name in params:
                mean = params[name][:kept].mean(0)
                fresh = mean + rng.normal(0, model.init_std, (rows - kept, len(mean)))
                params[name] = np.concatenate([params[name][:kept], fresh.astype(np.float32)])
        if "decoder_bias" in params:
            bias = params["decoder_bias"][:kept]
            params["decoder_bias"] = np.concatenate([bias, np.full(rows - kept, bias.mean(), np.float32)])
    length = max(max_length, model.max_length)
    if model.positions == "learned" and length > model.max_length:
        unused, used = np.split(params["position_table"], [model.position_offset])
        repeated = np.resize(used, (length, used.shape[1]))
        params["position_table"] = np.concatenate([unused, repeated])
    grown = replace(model, vocab_size=rows, max_length=length)
    return replace(start, model=grown, params=params)


def gentle(optim: OptimConfig, lr: float) -> OptimConfig:
    """Return the recipe for weights that are good already: a rate of at most `lr`, and AdamW instead of Muon."""
    if optim.optimizer == "muon":
        optim = replace(optim, optimizer="adamw", weight_decay=OptimConfig.weight_decay)
    return replace(optim, lr=min(optim.lr, lr))
