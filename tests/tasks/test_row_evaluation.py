"""Distribution of rows over ranks, and sums by class."""

from __future__ import annotations

import pytest
import torch

from ds4sci.parallel.groups import SequenceGroup
from ds4sci.tasks.row_evaluation import shard_rows, sum_by_class
from ds4sci.types import LanguageOutput


@pytest.mark.parametrize(("count", "world_size"), [(1, 1), (1, 4), (5, 2), (8, 4), (9, 4)])
def test_every_row_is_counted_once_and_every_rank_computes_equally_many(count: int, world_size: int) -> None:
    chosen = [10 * number for number in range(count)]
    shards = [shard_rows(chosen, rank, world_size) for rank in range(world_size)]
    assert len({len(shard.rows) for shard in shards}) == 1
    assert sorted(row for shard in shards for row in shard.rows[: shard.num_own]) == chosen


def test_sums_by_class_count_labels_with_a_weight() -> None:
    output = LanguageOutput(
        losses=torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]]),
        correct=torch.tensor([[True, False, True, True, True]]),
        labels=torch.tensor([[0, 2, 2, -100, 0]]),
        weights=torch.tensor([[1.0, 1.0, 0.5, 1.0, 0.0]]),
        soft_masked=torch.tensor([[False, False, True, False, False]]),
    )
    table = sum_by_class(output, 3, SequenceGroup(), residues=torch.tensor([[1, 3, 0, 1, 1]]))
    assert table.dtype == torch.float64
    assert table[0].tolist() == [[1.0, 1.0, 1.0, 1.0], [0.0] * 4, [2.0, 1.0, 0.0, 3.0]]
    assert table[1].tolist() == [[0.0] * 4, [0.0] * 4, [4.0, 1.0, 1.0, 0.0]]
    assert sum_by_class(output, 3, SequenceGroup())[0, 2].tolist() == [2.0, 1.0, 0.0, 1.0]
