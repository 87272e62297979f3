"""Operation counts by hand, and the peaks of known devices."""

from jax_mlm.config import ModelConfig
from jax_mlm.cost.flops import peak_flops, train_flops


def test_flops_by_hand():
    """Width 4, one gated layer of 8, vocabulary 10: 4·16 + 3·32 = 160 weights a token; the head has 16 + 40."""
    config = ModelConfig(width=4, heads=2, layers=1, ff_width=8, vocab_size=10)
    assert train_flops(config, tokens=5, pairs=25, targets=2) == 6 * 5 * 160 + 12 * 4 * 25 + 6 * 2 * 56


def test_peaks_are_found_by_the_start_of_the_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("cpu") is None
