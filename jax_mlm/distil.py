"""A smaller model learns from a larger one (DistilBERT, Sanh et al. 2019): `train --distil TEACHER`.

The student shares the teacher's tokenizer and begins with every other one of its layers. Beside the hidden tokens it
learns the teacher's probabilities at the same positions, softened by a temperature, and the direction of its last
hidden states at every token.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tokenizers import Tokenizer

from jax_mlm.config import DistilConfig, ModelConfig, TrainConfig, gentle
from jax_mlm.data import Batch
from jax_mlm.errors import UserError
from jax_mlm.hf.weights import at_offset, expected_shapes
from jax_mlm.initial import Initial, initial_model, read_initial, refuse_new_tokenizer, start_from
from jax_mlm.loss import Metrics, masked_metrics
from jax_mlm.masking import Masked
from jax_mlm.model import Encoder, Inputs, Params
from jax_mlm.run import RUN_FILE, TOKENIZER_FILE, read_run_file
from jax_mlm.step import Objective
from jax_mlm.tokenizer import load_tokenizer

STUDENT_LR = 5e-4
"""Largest default learning rate of a student: DistilBERT's own."""
Say = Callable[[str], None]


def to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


# ---- what a run begins with ----------------------------------------------------------------------


def student_defaults(preset: TrainConfig, source: Path, own_shape: bool) -> TrainConfig:
    """The preset's recipe for a student of `source`: half its layers, unless the preset was asked for by name."""
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


def begin(config: TrainConfig, run: Path, say: Say = to_stderr) -> tuple[TrainConfig, Initial | None, Initial | None]:
    """The config, the weights that a new run begins with (None: random ones, or a resumed run), and the teacher.

    Raises:
        UserError: --init or --distil cannot be read, or does not fit the options.
    """
    start = None
    if config.init and not config.resume:
        config, start = start_from(config, say)
    if not config.distil.distil:
        return config, start, None
    refuse_new_tokenizer(config, f"--distil {config.distil.distil}")
    teacher = read_teacher(config, run)
    if config.resume:
        tokenizer = load_tokenizer(run / TOKENIZER_FILE)
    elif start is not None:
        tokenizer = start.tokenizer
    else:
        tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else teacher.tokenizer
        start = Initial(config.model, student_params(teacher, config.model, say), tokenizer, teacher.origin)
    check_teacher(config, teacher, tokenizer)
    if config.model.width != teacher.model.width and config.distil.distil_cosine:
        say(
            f"hidden states have the width {config.model.width}, the teacher's {teacher.model.width}: "
            "trained without the cosine"
        )
    return config, start, teacher


def read_teacher(config: TrainConfig, run: Path) -> Initial:
    """The teacher, known by a fingerprint of its weights: a resumed run must find the same."""
    source = Path(config.distil.distil)
    teacher = read_initial(source)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(teacher.params):
        digest.update(np.ascontiguousarray(leaf))
    origin = {**teacher.origin, "fingerprint": digest.hexdigest()[:16]}
    if config.resume and (run / RUN_FILE).is_file():
        before = read_run_file(run).get("data", {}).get("teacher", origin)
        if before["fingerprint"] != origin["fingerprint"]:
            raise UserError(f"--distil {source} has other weights than those that {run} began to learn from")
    return replace(teacher, origin=origin)


def check_teacher(config: TrainConfig, teacher: Initial, tokenizer: Tokenizer) -> None:
    """Refuses a teacher that cannot read the student's rows."""
    source = config.distil.distil
    if tokenizer.get_vocab(with_added_tokens=True) != teacher.tokenizer.get_vocab(with_added_tokens=True):
        other = config.tokenizer or config.init or config.out
        raise UserError(
            f"--distil {source} has another tokenizer than {other}: a student shares its teacher's; leave out "
            "--tokenizer, --init and --add-tokens"
        )
    if config.corpus.length > teacher.model.max_length:
        raise UserError(
            f"--length {config.corpus.length} exceeds the {teacher.model.max_length} tokens of --distil {source}"
        )


def student_params(teacher: Initial, model: ModelConfig, say: Say = to_stderr) -> dict[str, Any] | None:
    """Every other layer of the teacher, or whatever share of them there is room for, and the rest as it is.

    A student without token types gets the teacher's first type, which every token of a single text has, with the
    positions. None, and a line that says why, where a shape differs.
    """
    theirs, their_model = dict(teacher.params), teacher.model
    if model.width != their_model.width:
        say(f"the student begins with random weights: its width is {model.width}, the teacher's {their_model.width}")
        return None
    if model.positions == "learned" and "position_table" in theirs:
        theirs = at_offset(theirs, their_model, model.position_offset)[0]
        table = theirs["position_table"][: model.max_length + model.position_offset]
        theirs["position_table"] = (
            table if model.token_types or "type_table" not in theirs else table + theirs["type_table"][0]
        )
    distinct, their_distinct = model.layer_groups or model.layers, their_model.layer_groups or their_model.layers
    taken = [i * (model.layers // distinct) * their_model.layers // model.layers for i in range(distinct)]
    layers = {f"layer_{i}": theirs[f"layer_{k * their_distinct // their_model.layers}"] for i, k in enumerate(taken)}
    params: dict[str, Any] = {}
    for path, shape in expected_shapes(model).items():
        node: Any = layers if path[0] in layers else theirs
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if node is None or node.shape != shape:
            there = "is not in the teacher" if node is None else f"is {node.shape} in the teacher"
            say(f"the student begins with random weights: its {'.'.join(path)} of shape {shape} {there}")
            return None
        place = params
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = node
    say(f"the student begins with layers {', '.join(map(str, taken))} of the teacher's {their_model.layers}")
    return params


# ---- the objective -------------------------------------------------------------------------------


def soft_targets(
    student: Float[Array, "B P V"], teacher: Float[Array, "B P V"], weights: Float[Array, "B P"], temperature: float
) -> Float[Array, ""]:
    """Σ T² · KL(teacher ‖ student) of the softened probabilities, over slots that weigh one (Hinton et al. 2015)."""
    log_s = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    log_t = jax.nn.log_softmax(teacher.astype(jnp.float32) / temperature)
    divergence = (jnp.exp(log_t) * (log_t - log_s)).sum(-1)
    return temperature**2 * (divergence * weights).sum()


def cosine_distance(
    student: Float[Array, "B S D"], teacher: Float[Array, "B S D"], weights: Float[Array, "B S"]
) -> Float[Array, ""]:
    """Σ 1 − cos of the two hidden states, over the tokens that weigh one."""
    s, t = student.astype(jnp.float32), teacher.astype(jnp.float32)
    lengths = jnp.sqrt(jnp.square(s).sum(-1) * jnp.square(t).sum(-1) + 1e-12)
    return ((1.0 - (s * t).sum(-1) / lengths) * weights).sum()


def make_states(config: ModelConfig, dtype: Any) -> Callable[..., tuple[Array, Array]]:
    """`states(params, inputs, at, row_keys=None)` → last hidden states [B, S, D], normalised, and logits [B, P, V]."""
    encoder = Encoder(config, dtype)

    def both(module: Encoder, inputs: Inputs, at: Array, row_keys: Array | None) -> tuple[Array, Array]:
        x = module.hidden(inputs, None, row_keys)
        logits = module.vocabulary(jnp.take_along_axis(x, at[..., None], axis=1))
        if config.norm_first:
            x = module.final_norm(x.reshape(-1, config.width)).reshape(x.shape)
        return x, logits

    def states(params: Params, inputs: Inputs, at: Array, row_keys: Array | None = None) -> tuple[Array, Array]:
        return encoder.apply({"params": params}, inputs, at, row_keys, method=both)

    return states


def make_objective(config: DistilConfig, student: ModelConfig, teacher: ModelConfig, dtype: Any) -> Objective:
    """The weighted sum of masked-language loss, soft targets and cosine, as a sum over targets.

    Soft targets are taken where the vocabulary is projected anyway, at the hidden tokens; the cosine at every token.
    """
    learn, teach = make_states(student, dtype), make_states(teacher, dtype)
    tokens = min(student.vocab_size, teacher.vocab_size)  # what a table has beyond is padding

    def objective(
        params: Params, fixed: Params, targets_per_token: Array, batch: Batch, masked: Masked, drop_keys: Array | None
    ) -> tuple[Array, Metrics]:
        inputs = Inputs(masked.tokens, batch.segments, batch.positions)
        hidden, logits = learn(params, inputs, masked.at, drop_keys)
        their_hidden, their_logits = jax.lax.stop_gradient(teach(fixed, inputs, masked.at))
        metrics = masked_metrics(logits, masked.targets, masked.weights)
        soft = soft_targets(logits[..., :tokens], their_logits[..., :tokens], masked.weights, config.distil_temperature)
        total, more = config.distil_mlm * metrics.loss_sum + config.distil_soft * soft, {"soft": soft}
        if student.width == teacher.width and config.distil_cosine:
            apart = cosine_distance(hidden, their_hidden, batch.segments > 0)
            more["cosine"] = targets_per_token * apart
            total += config.distil_cosine * more["cosine"]
        return total, metrics._replace(more=more)

    return objective
