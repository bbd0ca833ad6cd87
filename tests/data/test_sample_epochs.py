"""Sequences of samples: drawn by probability and mixed from two sets, by position alone."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from ds4sci.data.sample_epochs import MIX_BLOCK, DrawnEpochs, MixedEpochs, ShuffledEpochs


def test_items_are_drawn_with_their_probabilities() -> None:
    """Each epoch has M different items; over many, each as often as its probability says."""
    rng = np.random.default_rng(0)
    items, weights = np.arange(100, 150), rng.random(50) ** 2
    weights[7] = 0.0
    epochs = DrawnEpochs(items, weights, seed=3)
    assert epochs.size == int(weights.sum() / weights.max())
    rounds = 2000
    drawn = [[epochs.at(e * epochs.size + i) for i in range(epochs.size)] for e in range(rounds)]
    assert all(len(set(epoch)) == epochs.size for epoch in drawn)
    counts = Counter(item for epoch in drawn for item in epoch)
    expected = weights * epochs.size / weights.sum()
    found = np.array([counts[item] for item in items.tolist()]) / rounds
    assert counts[107] == 0
    assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / rounds)
    # positions in any order, and in another process
    other = pickle.loads(pickle.dumps(epochs))
    assert [other.at(p) for p in (999, 3, 500)] == [epochs.at(p) for p in (999, 3, 500)]
    first = Counter(epoch[0] for epoch in drawn)
    assert max(first.values()) < 0.5 * rounds, "the order in an epoch is random"


def test_equal_weights_use_every_item_once_per_epoch() -> None:
    epochs = DrawnEpochs(np.arange(37), np.full(37, 0.1), seed=0)
    assert sorted(epochs.at(p) for p in range(37, 74)) == list(range(37))
    with pytest.raises(ValueError, match="finite and at least 0, and one of them above 0"):
        DrawnEpochs(np.arange(2), np.zeros(2), seed=0)


@pytest.mark.parametrize("fraction", [0.75, 0.333, 0.005])
def test_two_sets_are_mixed_exactly(fraction: float) -> None:
    """Every block has its part of the second set, and each set is used epoch after epoch, without a gap."""
    first, second = ShuffledEpochs(np.arange(11), 1), ShuffledEpochs(np.arange(100, 107), 1)
    mixed = MixedEpochs(first, second, fraction, seed=5)
    total = 60 * MIX_BLOCK
    found = [mixed.at(p) for p in range(total)]
    of_second = [item for item in found if item >= 100]
    assert of_second == [second.at(p) for p in range(int(total * fraction + 1e-9))]
    assert [item for item in found if item < 100] == [first.at(p) for p in range(total - len(of_second))]
    for block in range(60):
        count = sum(item >= 100 for item in found[block * MIX_BLOCK : (block + 1) * MIX_BLOCK])
        assert abs(count - fraction * MIX_BLOCK) < 1
    assert [mixed.at(p) for p in (5000, 17)] == [found[5000], found[17]]
    switches = sum((a >= 100) != (b >= 100) for a, b in pairwise(found))
    assert switches > 0.5 * total * 2 * fraction * (1 - fraction), "in random order"
