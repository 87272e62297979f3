"""Every token exactly once an epoch, rows that are full, and batches that depend on nothing but (seed, step)."""

from __future__ import annotations

import random
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.rows import batch_in_order, prepared

from jax_mlm.config import DataConfig
from jax_mlm.data.batches import Rows, batch_at, batch_of, pack_rows, split_documents, token_counts
from jax_mlm.data.prefetch import prefetch
from jax_mlm.data.prepare import TokenFiles
from jax_mlm.data.shuffle import permuted
from jax_mlm.data.tokenizer import Vocabulary, train_tokenizer, vocabulary_of
from jax_mlm.errors import UserError

FRAMED = Vocabulary(size=60_000, pad=0, mask=4, unk=1, cls=2, sep=3, special=(0, 1, 2, 3, 4))
BARE = Vocabulary(size=60_000, pad=0, mask=2, unk=1, cls=None, sep=None, special=(0, 1, 2))
FIRST = 10
"""Smallest id of ordinary tokens in made files."""


def made_files(sizes: list[int], begins: list[bool] | None = None) -> TokenFiles:
    """Documents of these sizes; token i of the whole is FIRST + i (mod 50 000), so that each can be recognised."""
    total = sum(sizes)
    tokens = (FIRST + np.arange(total) % 50_000).astype(np.uint16)
    bits = np.packbits(np.ones(total, bool) if begins is None else np.array(begins))
    return TokenFiles(tokens, bits, np.cumsum([0, *sizes]), "made")


def content(batch, vocabulary: Vocabulary) -> np.ndarray:
    """The ordinary tokens of a batch, row by row."""
    special = np.isin(batch.tokens, [vocabulary.cls or -1, vocabulary.sep or -1])
    return batch.tokens[(batch.segments > 0) & ~special]


def everything(rows: Rows, size: int = 64):
    for start in range(0, len(rows), size):
        yield batch_in_order(rows, start, size)


def padding(rows: Rows) -> float:
    return 1 - sum((batch.segments > 0).sum() for batch in everything(rows)) / (len(rows) * rows.length)


# What a row holds


def test_document_rows_by_hand() -> None:
    # a: 10 … 16 (cut after 4), b: 17, c: 18; rows of 6; words begin at the ids in `heads`
    heads = {10, 12, 13, 15, 17, 18}
    files = made_files([7, 1, 1], [i in heads for i in range(10, 19)])
    batch = batch_in_order(pack_rows(files, FRAMED, 6, "document"), 0, 4)
    assert batch.tokens.tolist() == [
        [2, 10, 11, 12, 13, 3],
        [2, 14, 15, 16, 3, 0],
        [2, 17, 3, 2, 18, 3],
        [0, 0, 0, 0, 0, 0],
    ]
    assert batch.segments.tolist() == [[1] * 6, [1] * 5 + [0], [1, 1, 1, 2, 2, 2], [0] * 6]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 0], [0, 1, 2] * 2, [0] * 6]
    assert batch.words.tolist() == [
        [-1, 0, 0, 1, 2, -1],
        [-1, 0, 1, 1, -1, -1],  # 14 goes on with 13's word, in another row
        [-1, 0, -1, -1, 1, -1],
        [-1] * 6,
    ]
    assert batch.rows.tolist() == [0, 1, 2, 3]
    assert all(part.dtype == np.int32 for part in jax.tree.leaves(batch))


def test_short_documents_share_a_row() -> None:
    files = made_files([3, 2, 1], [True, False, True, True, False, True])
    batch = batch_in_order(pack_rows(files, FRAMED, 12, "document"), 0, 1)
    assert batch.tokens.tolist() == [[2, 10, 11, 12, 3, 2, 13, 14, 3, 2, 15, 3]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2]]
    assert batch.words.tolist() == [[-1, 0, 0, 1, -1, -1, 2, 2, -1, -1, 3, -1]]


def test_plain_rows_by_hand() -> None:
    heads = {10, 12, 13, 15, 17, 18}
    files = made_files([7, 1, 2], [i in heads for i in range(10, 20)])
    batch = batch_in_order(pack_rows(files, FRAMED, 6, "plain"), 0, 4)
    assert batch.tokens.tolist() == [
        [2, 10, 11, 12, 13, 14],
        [15, 16, 3, 2, 17, 3],
        [2, 18, 19, 3, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert batch.segments.tolist() == [[1] * 6, [1] * 6, [1, 1, 1, 1, 0, 0], [0] * 6]
    assert batch.positions[:2].tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert batch.words.tolist() == [
        [-1, 0, 0, 1, 2, 2],
        [0, 0, -1, -1, 1, -1],
        [-1, 0, 0, -1, -1, -1],
        [-1] * 6,
    ]


def test_without_cls_and_sep_rows_hold_text_only() -> None:
    files = made_files([5, 3])
    assert batch_in_order(pack_rows(files, BARE, 8, "document"), 0, 1).tokens.tolist() == [list(range(10, 18))]
    assert batch_in_order(pack_rows(files, BARE, 4, "plain"), 0, 2).tokens.tolist() == [
        [10, 11, 12, 13],
        [14, 15, 16, 17],
    ]


@settings(max_examples=80, derandomize=True, deadline=None, database=None)
@given(
    sizes=st.lists(st.integers(1, 90), min_size=1, max_size=60),
    length=st.integers(5, 64),
    pack=st.sampled_from(["document", "plain"]),
    vocabulary=st.sampled_from([FRAMED, BARE]),
)
@example([9] * 400, 16, "document", FRAMED)  # two of them leave much of a row empty: they are cut
@example([9] * 400, 64, "document", BARE)
@example([1234], 5, "document", FRAMED)
@example([1, 2, 9, 30, 70, 200] * 50, 64, "document", FRAMED)
def test_every_token_is_there_once_and_in_order(
    sizes: list[int], length: int, pack: str, vocabulary: Vocabulary
) -> None:
    rows = pack_rows(made_files(sizes), vocabulary, length, pack)
    seen = [token for batch in everything(rows) for token in content(batch, vocabulary).tolist()]
    assert sorted(seen) == list(range(FIRST, FIRST + sum(sizes)))
    epoch = range(-(-len(rows) // 7))
    drawn = np.concatenate([content(batch_at(rows, step, 3, 7), vocabulary) for step in epoch])
    assert set(drawn.tolist()) == set(seen), "an epoch holds every token"
    document = np.repeat(np.arange(len(sizes)), sizes)
    for batch in everything(rows):
        for tokens, segments, positions in zip(batch.tokens, batch.segments, batch.positions, strict=True):
            for number in range(1, segments.max(initial=0) + 1):
                piece = tokens[segments == number]
                ordinary = piece[(piece >= FIRST)]
                if pack == "document":
                    assert positions[segments == number].tolist() == list(range(len(piece)))
                    assert len(set(document[ordinary - FIRST])) == 1, "a segment is a piece of one document"
                    assert np.all(np.diff(ordinary.astype(int)) == 1)
                    if vocabulary is FRAMED:
                        assert (piece[0], piece[-1]) == (2, 3)
            assert np.all(tokens[segments == 0] == vocabulary.pad)
            assert np.all(np.diff((segments > 0).astype(int)) <= 0), "padding is at the end"


@pytest.mark.parametrize("length", [64, 128, 512])
@pytest.mark.parametrize("kind", ["long tail", "sentences", "just over half a row", "whole rows and a bit"])
def test_rows_are_full(length: int, kind: str) -> None:
    draw = random.Random(length)
    sizes = {
        "long tail": [int(draw.paretovariate(0.9)) % 5000 + 1 for _ in range(20_000)],
        "sentences": [draw.randint(5, 40) for _ in range(20_000)],
        "just over half a row": [length // 2 + draw.randint(1, 9) for _ in range(5_000)],
        "whole rows and a bit": [length + length // 2] * 2_000,
    }[kind]
    assert padding(pack_rows(made_files(sizes), FRAMED, length, "document")) < 0.02


def test_documents_that_fit_are_cut_only_where_nothing_else_fills_the_rows() -> None:
    draw = random.Random(0)
    sizes = [draw.randint(5, 40) for _ in range(5_000)]
    rows = pack_rows(made_files(sizes), FRAMED, 128, "document")
    assert len(rows.starts) == len(sizes)


def test_wikitext_rows_are_full(tmp_path, shared_data) -> None:
    path = shared_data / "wikitext-2/wiki.valid.tokens"
    tokenizer = train_tokenizer(path.read_text().split("\n"), "wordpiece", 1024)
    files = prepared([path], tokenizer, DataConfig(), tmp_path)
    for length in (64, 128, 256):
        rows = pack_rows(files, vocabulary_of(tokenizer), length, "document")
        assert padding(rows) < 0.02
        special = np.array(vocabulary_of(tokenizer).special)
        seen = np.concatenate([batch.tokens[~np.isin(batch.tokens, special)] for batch in everything(rows)])
        assert len(seen) == (~np.isin(files.tokens, special)).sum()
    assert token_counts(rows, 1024).tolist() == np.bincount(files.tokens, minlength=1024).tolist()


def test_counts_are_those_of_the_chosen_documents() -> None:
    files = made_files([5, 3, 4, 2_000_000])
    for pack in ("document", "plain"):
        counts = token_counts(pack_rows(files, FRAMED, 128, pack, np.array([0, 2])), 60_000)
        assert np.flatnonzero(counts).tolist() == [10, 11, 12, 13, 14, 18, 19, 20, 21]
        assert token_counts(pack_rows(files, FRAMED, 128, pack), 60_000).sum() == 2_000_012


def test_a_row_without_room_for_text_is_refused() -> None:
    with pytest.raises(UserError, match="--length 2 "):
        pack_rows(made_files([5]), FRAMED, 2, "document")


# Order


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 31, 100, 1000, 4097, 65_536])
def test_the_order_is_a_permutation(n: int) -> None:
    orders = [permuted(np.arange(n), n, seed, epoch) for seed in (0, 1, -5) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(n))
    if n > 7:
        assert all(not np.array_equal(a, b) for i, a in enumerate(orders) for b in orders[:i])
    if n >= 1000:  # no trend and no memory: correlations of independent uniforms lie within 4 / √n
        for order in orders:
            assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 4 / n**0.5
            assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4 / n**0.5


def test_small_permutations_are_all_drawn() -> None:
    drawn = {tuple(permuted(np.arange(4), 4, 0, epoch).tolist()) for epoch in range(1000)}
    assert len(drawn) == 24


@pytest.mark.parametrize("pack", ["document", "plain"])
def test_an_epoch_holds_each_row_once_across_batches(pack: str) -> None:
    rows = pack_rows(made_files([3, 50, 7] * 40), FRAMED, 16, pack)
    n = len(rows)
    in_order = {
        row.tobytes(): i for batch in everything(rows) for i, row in zip(batch.rows.tolist(), batch.tokens, strict=True)
    }
    steps = 2 * n // 6 + 1
    order = [in_order[row.tobytes()] for step in range(steps) for row in batch_at(rows, step, 3, 6).tokens]
    assert sorted(order[:n]) == sorted(order[n : 2 * n]) == list(range(n))
    assert order[:n] != order[n : 2 * n]


def test_fewer_rows_than_a_batch_repeat() -> None:
    rows = pack_rows(made_files([5]), FRAMED, 16, "document")
    batch = batch_at(rows, 10**9, 0, 4)
    assert np.all(batch.tokens == batch.tokens[0])
    assert batch.rows.tolist() == [0, 1, 2, 3]


def test_shards_make_up_the_global_batch() -> None:
    rows = pack_rows(made_files([5, 9, 30] * 20), FRAMED, 16, "document")
    whole = batch_at(rows, 17, 1, 12)
    for count in (1, 2, 3, 4):
        parts = [batch_at(rows, 17, 1, 12, (index, count)) for index in range(count)]
        for name, arrays in zip(whole._fields, zip(*parts, strict=True), strict=True):
            assert np.array_equal(np.concatenate(arrays), getattr(whole, name))
    with pytest.raises(UserError, match="--batch 12"):
        batch_at(rows, 0, 1, 12, (0, 5))


def test_rows_by_number_do_not_depend_on_their_batch() -> None:
    rows = pack_rows(made_files([5, 9, 30] * 20), FRAMED, 16, "document")
    whole = batch_in_order(rows, 0, len(rows) + 3)
    assert np.all(whole.segments[len(rows) :] == 0)
    assert whole.rows.tolist() == list(range(len(rows) + 3))
    chosen = np.array([7, 2, len(rows), 2])
    for part, all_rows in zip(*map(jax.tree.leaves, (batch_of(rows, chosen), whole)), strict=True):
        assert np.array_equal(part, all_rows[chosen])


@pytest.mark.parametrize("step", [0, 10**9])
def test_a_batch_costs_little_at_any_step(step: int) -> None:
    draw = random.Random(0)
    rows = pack_rows(made_files([draw.randint(1, 300) for _ in range(20_000)]), FRAMED, 128, "document")
    batch_at(rows, step, 0, 32)
    times = []
    for i in range(30):
        began = time.perf_counter()
        batch_at(rows, step + i, 0, 32)
        times.append(time.perf_counter() - began)
    assert min(times) < 3e-3  # 0.5 ms on an idle core


# Documents held out


@pytest.mark.parametrize(("n", "fraction", "count"), [(2, 0.01, 1), (10, 0.99, 9), (1000, 0.01, 10), (1000, 0.0001, 1)])
def test_the_split_is_by_document_and_repeatable(n: int, fraction: float, count: int) -> None:
    train, valid = split_documents(n, fraction, 0)
    assert len(valid) == count
    assert sorted([*train, *valid]) == list(range(n))
    assert np.array_equal(split_documents(n, fraction, 0)[1], valid)
    if 10 <= count < n // 2:
        assert not np.array_equal(split_documents(n, fraction, 1)[1], valid)


def test_nothing_can_be_held_out_of_one_document() -> None:
    with pytest.raises(UserError, match="--valid"):
        split_documents(1, 0.1, 0)
    with pytest.raises(UserError, match="--valid-fraction"):
        split_documents(10, 1.0, 0)


# In the background


def test_prefetch_keeps_order_and_stays_ahead() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step * step

    with prefetch(make, range(5), depth=2) as values:
        assert next(values) == 0
        time.sleep(0.05)
        assert made == [0, 1, 2]
        assert list(values) == [1, 4, 9, 16]


def test_prefetch_raises_where_the_value_is_due_and_ends_its_thread() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise RuntimeError("no such batch")
        return step

    before = threading.active_count()
    values = prefetch(make, iter(range(100)))
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(RuntimeError, match="no such batch"):
        next(values)
    values.close()
    values.close()
    assert threading.active_count() == before
