"""Resolve what a run starts from: random weights, those of --init, or layers of a teacher (--distil)."""

from __future__ import annotations

import hashlib
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from tokenizers import Tokenizer

from jax_mlm.config import ModelConfig, TrainConfig
from jax_mlm.data.tokenizer import load_tokenizer
from jax_mlm.errors import UserError
from jax_mlm.model.encoder import Params
from jax_mlm.model.params import at_offset, expected_shapes, leaves
from jax_mlm.run.directory import RUN_FILE, TOKENIZER_FILE, read_run_file
from jax_mlm.train.start import Initial, gentle, initial_model, read_initial, refuse_new_tokenizer, start_from

STUDENT_LR = 5e-4
"""Largest default learning rate of a student: DistilBERT's own."""


Print = Callable[[str], None]


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def student_defaults(preset: TrainConfig, source: Path, own_shape: bool) -> TrainConfig:
    """Return the preset's recipe for a student of `source`: half its layers, unless a preset was named."""
    teacher = initial_model(source)
    layers = max(1, teacher.layers // 2)
    groups = math.gcd(teacher.layer_groups, layers) if teacher.layer_groups else 0
    half = replace(teacher, layers=layers, layer_groups=groups)
    model = replace(preset.model, vocab_size=teacher.vocab_size) if own_shape else half
    length = min(preset.corpus.length, teacher.max_length, model.max_length)
    return replace(
        preset,
        model=model,
        corpus=replace(preset.corpus, length=length),
        optim=gentle(preset.optim, STUDENT_LR),
    )


class Start(NamedTuple):
    """What a run starts from."""

    config: TrainConfig
    """The config, with the shape of the weights."""
    weights: Initial | None
    """None for random initialisation and for a resumed run."""
    teacher: Initial | None
    tokenizer: Tokenizer | None
    """The tokenizer of the weights or of the teacher."""


def resolve_start(config: TrainConfig, run: Path, say: Print = to_stderr) -> Start:
    """Load what --init and --distil name.

    Raises:
        UserError: --init or --distil cannot be read, or does not fit the options.
    """
    start = None
    if config.init and not config.resume:
        config, start = start_from(config, say)
    if not config.distil.distil:
        return Start(config, start, None, start.tokenizer if start else None)
    if not config.resume:
        refuse_new_tokenizer(config, f"--distil {config.distil.distil}")
    teacher = read_teacher(config, run)
    for remark in teacher.remarks:
        say(f"--distil {config.distil.distil}: {remark}")
    if config.resume:
        tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    elif start is not None:
        tokenizer = start.tokenizer
    else:
        tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else teacher.tokenizer
        params = student_params(teacher, config.model, say)
        start = None if params is None else Initial(config.model, params, tokenizer, teacher.origin)
    check_teacher(config, teacher, tokenizer)
    if config.model.width != teacher.model.width and config.distil.distil_cosine:
        say(
            f"hidden states are {config.model.width} wide, the teacher's {teacher.model.width}: "
            "training without the cosine loss"
        )
    return Start(config, start, teacher, tokenizer)


def read_teacher(config: TrainConfig, run: Path) -> Initial:
    """Read the teacher, with a fingerprint of its weights: a resumed run must find the same."""
    source = Path(config.distil.distil)
    teacher = read_initial(source)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(teacher.params):
        digest.update(np.ascontiguousarray(leaf).data)
    origin = {**teacher.origin, "fingerprint": digest.hexdigest()[:16]}
    if config.resume and (run / RUN_FILE).is_file():
        before = read_run_file(run).get("data", {}).get("teacher", origin)
        if before["fingerprint"] != origin["fingerprint"]:
            raise UserError(f"--distil {source} has different weights from those that {run} started with")
    return replace(teacher, origin=origin)


def check_teacher(config: TrainConfig, teacher: Initial, tokenizer: Tokenizer) -> None:
    """Refuse a teacher that cannot read the student's rows."""
    source = config.distil.distil
    if tokenizer.get_vocab(with_added_tokens=True) != teacher.tokenizer.get_vocab(with_added_tokens=True):
        other = config.tokenizer or config.init or config.out
        raise UserError(
            f"--distil {source} has a different tokenizer from {other}: a student shares its teacher's; leave out "
            "--tokenizer, --init and --add-tokens"
        )
    if config.corpus.length > teacher.model.max_length:
        raise UserError(
            f"--length {config.corpus.length} exceeds the {teacher.model.max_length} tokens of --distil {source}"
        )


def student_params(teacher: Initial, model: ModelConfig, say: Print = to_stderr) -> Params | None:
    """Take every other layer of the teacher, or whatever share of them fits, and all other weights unchanged.

    A student without token types gets the teacher's first type, which every token of a single text has, added to its
    positions. If a shape differs, print why and return None.
    """
    assert teacher.params is not None
    theirs, their_model = dict(teacher.params), teacher.model
    if model.width != their_model.width:
        say(f"the student starts from random weights: its width is {model.width}, the teacher's {their_model.width}")
        return None
    if model.positions == "learned" and "position_table" in theirs:
        theirs = dict(at_offset(theirs, their_model, model.position_offset)[0])
        table = theirs["position_table"][: model.max_length + model.position_offset]
        theirs["position_table"] = (
            table if model.token_types or "type_table" not in theirs else table + theirs["type_table"][0]
        )
    distinct, their_distinct = model.layer_groups or model.layers, their_model.layer_groups or their_model.layers
    every = taken_layers(model, their_model)
    taken = [every[i * (model.layers // distinct)] for i in range(distinct)]
    layers = {f"layer_{i}": theirs[f"layer_{k * their_distinct // their_model.layers}"] for i, k in enumerate(taken)}
    arrays = leaves({**theirs, **layers})
    params = {}
    for path, shape in expected_shapes(model).items():
        array = arrays.get(path)
        if array is None or array.shape != shape:
            there = "is not in the teacher" if array is None else f"is {array.shape} in the teacher"
            say(f"the student starts from random weights: its {'.'.join(path)} of shape {shape} {there}")
            return None
        params[path] = array
    say(f"the student starts from layers {', '.join(map(str, taken))} of the teacher's {their_model.layers}")
    return unflatten_dict(params)


def taken_layers(model: ModelConfig, teacher: ModelConfig) -> list[int]:
    """Return the teacher's layer that each of the student's begins with: the one that stands where it does.

    Where both alternate between windows and attention to all, it is the nearest of the same kind, whatever the window's
    size, if each layer then gets a later one than the layer before.
    """
    standing = [layer * teacher.layers // model.layers for layer in range(model.layers)]
    ours, theirs = ([c.window(layer) is None for layer in range(c.layers)] for c in (model, teacher))
    if len({*ours}) == len({*theirs}) == 2:
        alike = [
            min((k for k, far in enumerate(theirs) if far == ours[layer]), key=lambda k: (abs(k - at), -k))
            for layer, at in enumerate(standing)
        ]
        if all(before < after for before, after in itertools.pairwise(alike)):
            return alike
    return standing
