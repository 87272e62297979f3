"""Operation counts by hand, and the peaks of known devices."""

import itertools

import numpy as np
import pytest

from jax_mlm.config import ModelConfig
from jax_mlm.cost.flops import attending_pairs, document_lengths, layers_pairs, peak_flops, train_flops


def test_flops_by_hand():
    """Width 4, gated layers of 8, vocabulary 10: 4·16 + 3·32 = 160 weights a token; the head has 16 + 40.

    The last layer has 2·16 for the keys and values of each token, and the others for what is asked.
    """
    config = ModelConfig(width=4, heads=2, layers=2, ff_width=8, vocab_size=10)
    rest = 12 * 4 * 25 + 6 * 2 * 56
    assert train_flops(config, tokens=5, pairs=25, targets=2) == 6 * (5 * (160 + 32) + 2 * 128) + rest
    assert train_flops(config, tokens=5, pairs=25, targets=2, states=5) == 6 * 5 * 2 * 160 + rest


def test_peaks_are_found_by_the_start_of_the_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("cpu") is None


def test_the_longest_start_of_the_name_counts():
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H100 NVL") == 835e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA L40S") == 362e12


def test_documents_of_a_batch_are_measured():
    """Two documents may follow each other across rows, and a row of padding has none."""
    segments = np.array([[1, 1, 1, 2, 0], [1, 2, 2, 2, 2], [2, 2, 0, 0, 0], [0, 0, 0, 0, 0]], np.int32)
    assert document_lengths(segments).tolist() == [3, 1, 1, 4, 2]


@pytest.mark.parametrize("window", [None, 0, 1, 2, 3, 9])
def test_pairs_are_those_that_are_counted_one_by_one(window: int | None):
    def near(query: int, key: int) -> bool:
        return window is None or abs(query - key) <= window

    lengths = np.array([1, 2, 3, 5])
    pairs = sum(near(*pair) for length in lengths for pair in itertools.product(range(length), repeat=2))
    assert attending_pairs(lengths, window) == pairs


def test_each_layer_counts_the_pairs_of_its_window():
    """Documents of 4 and 2: 16 + 4 pairs in a whole layer, 10 + 4 in one that sees a token on each side."""
    lengths = document_lengths(np.array([[1, 1, 1, 1, 2, 2, 0]], np.int32))
    config = ModelConfig(layers=4, global_every=3, local_window=2)
    assert layers_pairs(config, lengths) == 2 * 20 + 2 * 14
