"""Masking: the law of the count, uniform marginals, the 80/10/10 split, whole words, and what is never touched."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mlm.config import MaskConfig
from jax_mlm.data.tokenizer import Vocabulary
from jax_mlm.tasks.masking import RULES, make_mask, rate_at, row_keys, slots

VOCABULARY = Vocabulary(size=100, pad=0, mask=4, unk=1, cls=2, sep=3, special=(0, 1, 2, 3, 4))
LENGTH, ROWS = 64, 16_384


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A row `[CLS] 40 tokens, one unknown, [SEP] padding` with words of 1 to 4 tokens, the same in every row."""
    rng = np.random.default_rng(seed)
    tokens = np.full(LENGTH, VOCABULARY.pad, np.int32)
    tokens[0], tokens[1:42], tokens[42] = VOCABULARY.cls, rng.integers(5, 100, 41), VOCABULARY.sep
    tokens[20] = VOCABULARY.unk
    words = np.full(LENGTH, -1, np.int32)
    words[1:42] = np.repeat(np.arange(41), rng.integers(1, 5, 41))[:41]
    return np.tile(tokens, (ROWS, 1)), np.tile(words, (ROWS, 1))


@cache
def program(rule: str):
    """One for every rate up to a half: there are slots for the largest."""
    return jax.jit(make_mask(MaskConfig(mask_rule=rule, mask_rate=0.5), VOCABULARY, LENGTH))


def masked(rule: str = "token", rate: float = 0.15, seed: int = 0):
    return drawn(rule, rate, seed)


@cache
def drawn(rule: str, rate: float, seed: int):
    tokens, words = rows()
    keys = row_keys(jax.random.key(seed), 3, jnp.arange(ROWS))
    return tokens, words, jax.device_get(program(rule)(keys, tokens, words, jnp.float32(rate)))


def chosen(result) -> np.ndarray:
    """[rows, LENGTH] True at targets."""
    out = np.zeros((ROWS, LENGTH), bool)
    row, slot = np.nonzero(result.weights)
    out[row, result.at[row, slot]] = True
    return out


@pytest.mark.parametrize("rule", RULES)
def test_special_tokens_and_padding_are_never_targets_nor_replacements(rule):
    tokens, _, result = masked(rule)
    special = np.isin(tokens, VOCABULARY.special)
    assert not (chosen(result) & special).any()
    assert (result.tokens[special] == tokens[special]).all()
    changed = result.tokens[(result.tokens != tokens) & (result.tokens != VOCABULARY.mask)]
    assert changed.size > 1000
    assert not np.isin(changed, VOCABULARY.special).any()
    assert not np.isin(result.targets[result.weights > 0], VOCABULARY.special).any()


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_token_count_is_the_floor_or_ceiling_with_the_exact_mean(rate):
    """40 eligible tokens at 15 % are exactly 6; at 0.3 × 40 = 12; over 10⁶ tokens."""
    _, _, result = masked("token", rate)
    counts = result.weights.sum(1)
    expected = 40 * rate
    assert set(np.unique(counts)) <= {np.floor(expected), np.ceil(expected), np.round(expected)}
    fractional = masked("token", 0.16)[2].weights.sum(1)  # 6.4 tokens: 6 or 7
    assert set(np.unique(fractional)) == {6.0, 7.0}
    assert abs(fractional.mean() - 6.4) < 5 * 0.49 / np.sqrt(ROWS)


@pytest.mark.parametrize("rule", RULES)
def test_marginals_are_uniform_over_eligible_tokens(rule):
    tokens, _, result = masked(rule)
    eligible = ~np.isin(tokens[0], VOCABULARY.special)
    hits = chosen(result)[:, eligible].sum(0)
    sigma = np.sqrt(ROWS * 0.15 * 0.85)
    assert np.abs(hits - ROWS * 0.15).max() < 5 * sigma


def test_split_is_80_10_10_by_chi_square():
    tokens, _, result = masked()
    at = chosen(result)
    shown, original = result.tokens[at], tokens[at]
    n = at.sum()
    as_mask, kept = (shown == VOCABULARY.mask).sum(), (shown == original).sum()
    # A random token is the original one once in 95 times: it then counts as kept.
    expected = np.array([0.8, 0.1 * 94 / 95, 0.1 + 0.1 / 95]) * n
    seen = np.array([as_mask, n - as_mask - kept, kept])
    assert ((seen - expected) ** 2 / expected).sum() < 13.8, "χ² with 2 degrees of freedom, p = 0.001"


@cache
def mask_of(rule: str):
    """Rows of 32 tokens, by any rate: there are slots for all of them."""
    config = MaskConfig(mask_rule=rule, mask_rate=1.0, span_mean=3.0, span_max=5)
    return jax.jit(make_mask(config, VOCABULARY, 32))


@st.composite
def texts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A row of 32: words of 1 to 6 tokens, special tokens between them and unknown ones inside, padding at the end."""
    tokens, words = np.full(32, VOCABULARY.pad, np.int32), np.full(32, -1, np.int32)
    at = 0
    for word, size in enumerate(draw(st.lists(st.integers(1, 6), max_size=10))):
        if draw(st.booleans()) and at < 32:
            tokens[at], at = VOCABULARY.sep, at + 1
        pieces = draw(st.lists(st.sampled_from([1, *range(5, 100)]), min_size=size, max_size=size))[: 32 - at]
        tokens[at : at + len(pieces)], words[at : at + len(pieces)] = pieces, word
        at += len(pieces)
    return tokens, words


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, derandomize=True, deadline=None, database=None)
@given(text=texts(), rate=st.sampled_from([0.05, 0.15, 0.3, 0.5, 0.9]), step=st.integers(0, 1000))
def test_whatever_the_text_the_law_holds(
    rule: str, text: tuple[np.ndarray, np.ndarray], rate: float, step: int
) -> None:
    tokens, words = (np.tile(part, (8, 1)) for part in text)
    keys = row_keys(jax.random.key(0), step, jnp.arange(8))
    result = jax.device_get(mask_of(rule)(keys, tokens, words, jnp.float32(rate)))
    row, slot = np.nonzero(result.weights)
    where = result.at[row, slot]
    chosen = np.zeros(tokens.shape, bool)
    chosen[row, where] = True
    eligible = ~np.isin(tokens, VOCABULARY.special)
    assert not (chosen & ~eligible).any()
    assert chosen.sum() == result.weights.sum(), "no position is taken twice"
    assert (result.targets[row, slot] == tokens[row, where]).all()
    assert (result.tokens[~chosen] == tokens[~chosen]).all()
    changed = result.tokens[(result.tokens != tokens) & (result.tokens != VOCABULARY.mask)]
    assert not np.isin(changed, VOCABULARY.special).any()
    room = RULES[rule].room(MaskConfig(span_max=5))
    longest = {"token": 1, "whole-word": 6, "span": 5}.get(rule, room + 1)  # a new rule is held to what it declares
    expected, counts = rate * eligible[0].sum(), chosen.sum(1)
    assert (np.abs(counts - expected) < longest + 1e-3).all()
    if rule == "whole-word":
        for word in set(words[0].tolist()) - {-1}:
            hidden = chosen[:, (words[0] == word) & eligible[0]].sum(1)
            assert set(hidden.tolist()) <= {0, ((words[0] == word) & eligible[0]).sum()}
    tokens[3:], words[3:] = VOCABULARY.pad, -1
    again = mask_of(rule)(keys, tokens, words, jnp.float32(rate))
    for alone, whole in zip(again, result, strict=True):
        np.testing.assert_array_equal(alone[:3], whole[:3], "what the other rows hold changes none")


def test_a_whole_word_is_hidden_entirely_or_not_at_all():
    tokens, words, result = masked("whole-word")
    at, eligible = chosen(result)[:, 1:42], ~np.isin(tokens[0, 1:42], VOCABULARY.special)
    for word in np.unique(words[0, 1:42]):
        part = at[:, (words[0, 1:42] == word) & eligible]
        assert (part.all(1) == part.any(1)).all()


def test_a_word_that_does_not_fit_is_left_out_whole():
    """One word of 60 tokens, and room for 32 + 16: never hidden in part."""
    tokens = np.full((ROWS, LENGTH), 7, np.int32)
    words = np.tile(np.r_[np.zeros(60, np.int32), np.arange(1, 5, dtype=np.int32)], (ROWS, 1))
    keys = row_keys(jax.random.key(0), 0, jnp.arange(ROWS))
    result = jax.device_get(program("whole-word")(keys, tokens, words, jnp.float32(0.5)))
    assert result.at.shape[1] == 48
    assert result.weights[result.at < 60].sum() == 0
    assert result.weights.sum() > 0


def test_spans_have_the_mean_length_asked_for():
    _, _, result = masked("span")
    at = chosen(result)[:, 1:20]  # no special token inside
    starts = (at & ~np.pad(at, ((0, 0), (1, 0)))[:, :-1]).sum()
    assert at.sum() / starts > 2.0, "runs of targets, where single tokens would give about 1.2"


def test_steps_and_rows_get_different_masks():
    first, other = chosen(masked()[2]), chosen(masked(seed=1)[2])
    assert (first[0] != first[1]).any()
    assert (first != other).any(1).mean() > 0.9


@pytest.mark.parametrize("rule", RULES)
def test_what_is_hidden_does_not_depend_on_how_many_slots_there_are(rule):
    """Words of up to 25 tokens are among those hidden: the longest may not fit, and then it fits nowhere."""
    config = MaskConfig(mask_rule=rule, mask_rate=0.5, mask_rate_end=0.1)
    tokens, words = rows()
    words[:, 1:42] = np.repeat(np.arange(5), [25, 2, 9, 1, 4])
    keys = row_keys(jax.random.key(1), 3, jnp.arange(500))
    some = keys, tokens[:500], words[:500], jnp.float32(rate_at(config, 1, 2))
    many, few = (jax.device_get(jax.jit(make_mask(config, VOCABULARY, LENGTH, share))(*some)) for share in (0.0, 0.5))
    room = few.at.shape[1]
    assert room < many.at.shape[1]
    assert not many.weights[:, room:].any()
    np.testing.assert_array_equal(few.tokens, many.tokens)
    for a, b in zip(few, many, strict=True):
        np.testing.assert_array_equal(a, b[:, : a.shape[1]])


def test_rate_schedule_and_slots():
    config = MaskConfig(mask_rate=0.3, mask_rate_end=0.15)
    assert rate_at(config, 0, 100) == pytest.approx(0.3)
    assert rate_at(config, 50, 100) == pytest.approx(0.225)
    assert rate_at(config, 100, 100) == pytest.approx(0.15)
    assert rate_at(replace(config, mask_rate_end=-1.0), 70, 100) == pytest.approx(0.3)
    assert slots(config, 128) == 39
    assert [slots(config, 128, share) for share in (0.5, 1.0)] == [29, 20]
    assert slots(replace(config, mask_rate_end=0.45), 128, 0.5) == slots(MaskConfig(mask_rate=0.45), 128)
    assert slots(MaskConfig(mask_rate=1.0), 16) == 16
