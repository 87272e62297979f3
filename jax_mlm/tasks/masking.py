"""Which tokens are hidden, and what replaces them: the masked-language-model task as pure functions.

Every rule is the same law over different groups. The eligible tokens are cut into groups (each token, each word, each
span); the groups are laid end to end in random order on a circle as long as they are; a window of `rate` times that
length falls on it at a uniform place, and a group is chosen when its first token lies in the window. A group's chance
is then exactly `rate`, whatever its length (this is systematic sampling), and the number of single tokens chosen is the
floor or the ceiling of `rate` times the eligible ones, in the proportion that makes the mean exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jax_mlm.config import MaskConfig
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.errors import unknown_choice
from jax_mlm.tasks.task import library_of

LONGEST_WORD = 16
"""Slots beyond those the rate needs, so that the last word chosen fits; a longer word may be skipped."""


class Masked(NamedTuple):
    """Rows with P slots for targets; unused slots have weight zero."""

    tokens: Int[Array, "B S"]
    at: Int[Array, "B P"]
    targets: Int[Array, "B P"]
    weights: Float[Array, "B P"]


GroupRule = Callable[[Key[Array, ""], Bool[Array, " S"], Int[Array, " S"]], Int[Array, " S"]]
"""(key, eligible, words) → a number for each token; adjacent tokens with equal numbers are hidden together."""


def token_groups(key: Key[Array, ""], eligible: Bool[Array, " S"], words: Int[Array, " S"]) -> Int[Array, " S"]:
    """Number each token by itself."""
    del key, words
    return jnp.arange(eligible.shape[0])


def word_groups(key: Key[Array, ""], eligible: Bool[Array, " S"], words: Int[Array, " S"]) -> Int[Array, " S"]:
    """Number all tokens of a word alike."""
    del key, eligible
    return words


def make_span_groups(mean: float, longest: int) -> GroupRule:
    """Make spans of geometric length, cut at `longest` (SpanBERT, Joshi et al. 2019), never across a special token."""

    def span_groups(key: Key[Array, ""], eligible: Bool[Array, " S"], words: Int[Array, " S"]) -> Int[Array, " S"]:
        del words
        ends = jax.random.bernoulli(key, 1 / mean, eligible.shape)
        broken = ends | ~eligible

        def count(run: Array, stop: Array) -> tuple[Array, Array]:
            begins = stop | (run >= longest)
            return jnp.where(begins, 1, run + 1), begins

        _, begins = jax.lax.scan(count, jnp.int32(longest), jnp.concatenate([jnp.ones(1, bool), broken[:-1]]))
        return jnp.cumsum(begins)

    return span_groups


class Rule(NamedTuple):
    """A masking rule: which tokens are hidden together, and the room that this takes."""

    groups: Callable[[MaskConfig], GroupRule]
    room: Callable[[MaskConfig], int]
    """Number of tokens by which the last group chosen may exceed the rate."""


RULES: Mapping[str, Rule] = {
    "token": Rule(lambda config: token_groups, lambda config: 0),
    "whole-word": Rule(lambda config: word_groups, lambda config: LONGEST_WORD),
    "span": Rule(lambda config: make_span_groups(config.span_mean, config.span_max), lambda config: config.span_max),
}
"""The choices of --mask-rule, and the one place to add another."""


def rule_of(config: MaskConfig) -> Rule:
    """Return the rule that the configuration names."""
    if config.mask_rule not in RULES:
        raise unknown_choice("--mask-rule", config.mask_rule, RULES)
    return RULES[config.mask_rule]


def slots(config: MaskConfig, length: int, share: float = 0.0) -> int:
    """Return the static number P of target slots in a row of `length` tokens.

    They are enough for every rate from this share of the horizon on.
    """
    end = config.mask_rate if config.mask_rate_end < 0 else config.mask_rate_end
    largest = max(config.mask_rate + (end - config.mask_rate) * share, end)
    needed = math.ceil(largest * length - 1e-6)
    return min(length, needed + rule_of(config).room(config))


def rate_at(config: MaskConfig, step: Array | int, horizon: Array | int) -> Array | np.floating:
    """Return the mask rate at `step` of `horizon`: constant, or linear towards `mask_rate_end`."""
    xp = library_of(step)
    if config.mask_rate_end < 0:
        return xp.float32(config.mask_rate)
    part = xp.clip(step / xp.maximum(horizon, 1), 0.0, 1.0)
    return config.mask_rate + (config.mask_rate_end - config.mask_rate) * part.astype(xp.float32)


def choose(
    key: Key[Array, ""], groups: Int[Array, " S"], eligible: Bool[Array, " S"], rate: Array, room: Array
) -> Bool[Array, " S"]:
    """Choose whole groups by the law above; one that would exceed `room` tokens in all is left out entirely."""
    S = groups.shape[0]
    order_key, window_key = jax.random.split(key)
    index = jnp.arange(S)
    first = jnp.concatenate([jnp.ones(1, bool), groups[1:] != groups[:-1]])
    leader = jax.lax.cummax(jnp.where(first, index, 0))
    score = jnp.where(eligible, jax.random.bits(order_key, (S,), jnp.uint32)[leader], jnp.uint32(0xFFFFFFFF))
    _, _, order = jax.lax.sort((~eligible, score, index), num_keys=3)

    total = eligible.sum()
    lead = leader[order]
    begins = jnp.concatenate([jnp.ones(1, bool), lead[1:] != lead[:-1]])
    start = jax.lax.cummax(jnp.where(begins, index, 0))
    end = jnp.concatenate([jnp.where(begins, index, S)[1:], jnp.full(1, S)])
    end = jnp.minimum(jax.lax.cummin(end, reverse=True), total)

    # Both sides in float32: exact while a row is shorter than 2^24 tokens.
    size = jnp.maximum(total, 1).astype(jnp.float32)
    window = jax.random.uniform(window_key) * size
    distance = jnp.mod(start - window, size)
    chosen = (distance < rate * size) & (jnp.floor(distance) + (end - start) <= room) & (index < total)
    return jnp.zeros(S, bool).at[order].set(chosen)


def make_mask(
    config: MaskConfig, vocabulary: Vocabulary, length: int, share: float = 0.0
) -> Callable[[Key[Array, " B"], Int[Array, "B S"], Int[Array, "B S"], Array], Masked]:
    """Return `mask(row_keys, tokens, words, rate)` for rows of `length` tokens.

    Special tokens (the unknown token among them) and padding are never targets and never drawn as replacements. There
    are as many slots as `slots` counts from a share of the horizon on; what is hidden does not depend on that.
    """
    rule, spare = rule_of(config).groups(config), rule_of(config).room(config)
    room, most = slots(config, length, share), slots(config, length)
    special = np.zeros(vocabulary.size, bool)
    special[list(vocabulary.special)] = True
    ordinary = np.flatnonzero(~special).astype(np.int32)

    def mask_row(key: Key[Array, ""], tokens: Int[Array, " S"], words: Int[Array, " S"], rate: Array) -> Masked:
        group_key, choose_key, split_key, random_key = jax.random.split(key, 4)
        eligible = (words >= 0) & ~jnp.asarray(special)[tokens]
        fit = jnp.minimum(jnp.ceil(rate * length - 1e-6) + spare, room)  # as `slots` counts them at this rate
        chosen = choose(choose_key, rule(group_key, eligible, words), eligible, rate, fit)
        at = jnp.sort(jnp.where(chosen, jnp.arange(length), length))[:room]
        used = at < length
        targets = jnp.where(used, tokens[jnp.minimum(at, length - 1)], 0)
        draw = jax.random.uniform(split_key, (most,))[:room]
        random = jnp.asarray(ordinary)[jax.random.randint(random_key, (most,), 0, ordinary.size)[:room]]
        shown = jnp.where(draw < config.mask_token + config.mask_random, random, targets)
        shown = jnp.where(draw < config.mask_token, vocabulary.mask, shown)
        hidden = tokens.at[at].set(shown, mode="drop")
        return Masked(hidden, jnp.where(used, at, 0), targets, used.astype(jnp.float32))

    return jax.vmap(mask_row, in_axes=(0, 0, 0, None))


def row_keys(key: Key[Array, ""], step: Array | int, rows: Int[Array, " B"]) -> Key[Array, " B"]:
    """Return a key for each global row of a step, however rows are spread over microbatches, devices or hosts."""
    step_key = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(step_key, row))(rows)
