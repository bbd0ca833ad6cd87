"""Ulysses attention over ranks against attention in one process, in fp64, to rounding."""

from __future__ import annotations

import pytest
import torch

from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.parallel.ulysses import head_range, key_head_range
from tests.support import rank_processes, ulysses_rank


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_heads(size, tmp_path) -> None:
    rank_processes.call(size, ulysses_rank.check, [], tmp_path)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_layers_on_a_part_of_the_tokens(size, tmp_path) -> None:
    rank_processes.call(size, ulysses_rank.check_chunks, [], tmp_path)


def test_every_head_has_one_rank() -> None:
    for heads in range(1, 25):
        for size in range(1, 9):
            head_ranges = [head_range(heads, size, rank) for rank in range(size)]
            assert [head for heads_of_rank in head_ranges for head in heads_of_rank] == list(range(heads))
            assert max(map(len, head_ranges)) - min(map(len, head_ranges)) <= 1
    assert key_head_range(range(3, 6), 4) == range(2)
    assert key_head_range(range(0), 4) == range(0)


def test_a_row_that_the_ranks_do_not_divide() -> None:
    with pytest.raises(ValueError, match="10 tokens cannot be divided among 4 ranks"):
        SequenceGroup(0, 4).shard(torch.zeros(1, 10))
    assert SINGLE_RANK.shard(torch.zeros(1, 10)).shape == (1, 10)
