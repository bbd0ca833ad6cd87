"""Rows of tokens: windows, packing, and their endless order."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds4sci.data.language.packing import draw_window, make_rows, pack
from ds4sci.data.language.windows import Regions
from ds4sci.data.loader import shuffled_index
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.tokenizers.schemes import FixedStride


class ResidueTokenizer:
    """A tokenizer with one token per residue, <cls> and <eos>."""

    num_prefix_tokens, num_special_tokens, fixed_stride = 1, 2, FixedStride()

    def encode(self, letters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = np.pad(np.arange(len(letters)), 1)
        return np.pad(letters, 1).astype(np.int64), place, np.pad(np.ones(len(letters), np.int64), 1)

    def is_unknown(self, ids: np.ndarray) -> np.ndarray:
        return ids < 0


@given(st.lists(st.integers(1, 64), min_size=1, max_size=300), st.integers(0, 5))
def test_packing_holds_every_document_once(sizes, seed) -> None:
    tokens = np.array(sizes)
    order, bounds = pack(tokens, 64, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(sizes)))
    sums = [int(tokens[order[a:b]].sum()) for a, b in pairwise(bounds)]
    assert max(sums) <= 64
    assert min(sums) > 0
    # best fit opens a row only for a document that fits in no open row, so no two rows fit into one
    assert sorted(sums)[0] + sorted(sums)[1] > 64 if len(sums) > 1 else True


def test_real_proteins_fill_rows() -> None:
    chains = ChainSet.open(Path(__file__).parents[3] / "examples/fold/data/chains_train.npz")
    rows = make_rows(
        Regions.whole(chains.lengths, range(len(chains))),
        ResidueTokenizer(),
        document_tokens=1024,
        row_tokens=1024,
        seed=0,
    )
    assert rows.packing_efficiency > 0.98
    assert int(rows.tokens.sum()) == int(chains.lengths.sum()) + 2 * len(chains)


def test_long_records_are_cut_into_windows_that_cover_them() -> None:
    lengths = np.array([1000, 50, 98])
    rows = make_rows(
        Regions.whole(lengths, [0, 1, 2]), ResidueTokenizer(), document_tokens=100, row_tokens=None, seed=0
    )
    assert len(rows) == len(rows.record)
    first = [(a, b) for r, a, b in zip(rows.record, rows.start, rows.stop, strict=True) if r == 0]
    assert first[0] == (0, 98)
    assert first[-1] == (980, 1000)
    assert sum(b - a for a, b in first) == 1000
    assert rows.tokens.max() == 100


def test_windows_are_shifted_within_their_region() -> None:
    rows = make_rows(
        Regions(np.array([4]), np.array([500]), np.array([900])),
        ResidueTokenizer(),
        document_tokens=102,
        row_tokens=None,
        seed=0,
    )
    rng = np.random.default_rng(0)
    seen = [draw_window(rows, document, rng) for document in range(len(rows)) for _ in range(200)]
    assert min(a for a, _ in seen) == 500
    assert max(b for _, b in seen) == 900
    assert {b - a for a, b in seen} == {100}
    whole = make_rows(
        Regions.whole(np.array([80]), [0]), ResidueTokenizer(), document_tokens=102, row_tokens=None, seed=0
    )
    assert draw_window(whole, 0, rng) == (0, 80)


def test_every_epoch_has_each_row_once_in_another_order() -> None:
    epochs = [[shuffled_index(3, epoch * 50 + i, 50) for i in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_impossible_sizes() -> None:
    regions = Regions.whole(np.array([30]), [0])
    with pytest.raises(ValueError, match="row of 50 tokens cannot hold a document of 60"):
        make_rows(regions, ResidueTokenizer(), document_tokens=60, row_tokens=50, seed=0)
    with pytest.raises(ValueError, match="2 tokens has no space for residues"):
        make_rows(regions, ResidueTokenizer(), document_tokens=2, row_tokens=None, seed=0)
    with pytest.raises(ValueError, match="no sequence"):
        make_rows(Regions.whole(np.array([], int), []), ResidueTokenizer(), document_tokens=9, row_tokens=None, seed=0)
