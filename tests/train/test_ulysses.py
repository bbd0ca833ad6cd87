"""Attention of rows that ranks share, in fp64, to round-off."""

from __future__ import annotations

import pytest
import torch

from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.parallel.ulysses import head_range, key_head_range
from tests.support import rank_processes, ulysses_rank


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_heads(size, tmp_path) -> None:
    rank_processes.call(size, ulysses_rank.check, [], tmp_path)


def test_every_head_has_one_rank() -> None:
    for heads in range(1, 25):
        for size in range(1, 9):
            shares = [head_range(heads, size, rank) for rank in range(size)]
            assert [head for share in shares for head in share] == list(range(heads))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert key_head_range(range(3, 6), 4) == range(2)
    assert key_head_range(range(0), 4) == range(0)


def test_a_row_that_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="10 tokens cannot be divided among 4 ranks"):
        SequenceGroup(0, 4).shard(torch.zeros(1, 10))
    assert SINGLE_RANK.shard(torch.zeros(1, 10)).shape == (1, 10)
