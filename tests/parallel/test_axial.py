"""Axial parallelism over ranks against one process, in fp64, to rounding."""

from __future__ import annotations

import json

import pytest
import torch

from ds4sci.parallel.axial import WHOLE, even_ranges
from tests.support import axial_ranks, rank_processes
from tests.support.layouts import SPLITS, Case
from tests.train.test_same_gradient import check

SIZES = [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]


def test_every_row_has_one_rank() -> None:
    for length in range(25):
        for size in range(1, 9):
            ranges = even_ranges(length, size)
            assert [i for own in ranges for i in own] == list(range(length))
            assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_one_rank_exchanges_nothing() -> None:
    x = torch.randn(1, 2, 3, 4)
    for function in (WHOLE.msa_to_columns, WHOLE.msa_to_rows, WHOLE.pair_to_columns, WHOLE.pair_to_rows):
        assert function(x) is x
    for function in (WHOLE.gather_msa, WHOLE.gather_residues, WHOLE.own_msa, WHOLE.own_residues):
        assert function(x, 1) is x


@pytest.mark.parametrize("size", SIZES)
def test_exchanges(size, tmp_path) -> None:
    rank_processes.call(size, axial_ranks.check_primitives, [], tmp_path)


def test_blocks(tmp_path) -> None:
    """A block of each stack."""
    rank_processes.call(2, axial_ranks.check_blocks, ['["main", "extra"]', "[[2, 5, 13]]"], tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_block(size, tmp_path) -> None:
    shapes = [[1, 1, 13], [2, 5, 17], [1, 5, 13], [1, 2, 3], [1, 1, 1]]
    arguments = [json.dumps(list(axial_ranks.BLOCKS)), json.dumps(shapes)]
    rank_processes.call(size, axial_ranks.check_blocks, arguments, tmp_path, seconds=900)


def test_model(tmp_path) -> None:
    """Loss, outputs and gradients of the whole model: two examples, recycling, recomputed."""
    rank_processes.call(2, axial_ranks.check_model, [json.dumps([[[17, 13], 5, 1, True, False]])], tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_model(size, tmp_path) -> None:
    cases = [
        [crops, s, recycling, recompute, False]
        for crops in ([13], [17], [17, 13], [5])
        for s in (1, 5)
        for recycling, recompute in ((0, False), (2, False), (1, True))
    ]
    cases += [[[13], 1, 0, False, True], [[17, 13], 5, 0, False, True]]
    rank_processes.call(size, axial_ranks.check_model, [json.dumps(cases)], tmp_path, seconds=900)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages", [(0, 3), pytest.param((1, 2), marks=pytest.mark.nightly)], ids=lambda stages: f"stages {stages}"
)
def test_two_groups_of_two_ranks_train_as_fp64_torch(stages, tmp_path) -> None:
    """Axial 2 × data 2 through the trainer, on each ZeRO stage, with other micro-batches on each."""
    cases = [Case("fold", stage, *SPLITS[2][number]) for number, stage in enumerate(stages)]
    check(cases, 4, tmp_path, parallel={"sequence": 2})
