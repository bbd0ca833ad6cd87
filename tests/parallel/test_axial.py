"""Axial parallelism over ranks against one process, in fp64, to rounding."""

from __future__ import annotations

import json

import pytest
import torch

from ds4sci.parallel.axial import WHOLE, even_ranges
from tests.support import axial_ranks, layouts, rank_processes
from tests.support.layouts import SPLITS, Case
from tests.train.test_same_gradient import _run as train
from tests.train.test_same_gradient import check


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


@pytest.mark.parametrize(
    "size", [2, pytest.param(3, marks=pytest.mark.nightly), pytest.param(4, marks=pytest.mark.slow)]
)
def test_ranks_compute_what_one_process_computes(size, tmp_path) -> None:
    """The exchanges; a block of each stack; the whole model: two examples, recycling, recomputed."""
    shapes, models = [[2, 5, 13]], [[[17, 13], 5, 1, True, False, 3]]
    if size > 2:  # fewer rows than ranks
        shapes, models = [[1, 1, 3]], [[[3], 1, 1, True, False, 0]]
    arguments = ['["main", "extra"]', json.dumps(shapes), json.dumps(models)]
    rank_processes.call(size, axial_ranks.check, arguments, tmp_path, seconds=180)


@pytest.mark.slow
def test_ranks_compute_complexes_as_one_process(tmp_path) -> None:
    """AlphaFold-Multimer: two complexes of three chains with templates, recycled and recomputed."""
    cases = [[[17, 13], 5, 1, True, False, 3, "multimer"]]
    rank_processes.call(2, axial_ranks.check_model, [json.dumps(cases)], tmp_path, seconds=180)


@pytest.mark.slow
def test_planted_faults_are_found(tmp_path) -> None:
    rank_processes.call(2, axial_ranks.check_faults, [], tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_block(size, tmp_path) -> None:
    shapes = [[1, 1, 13], [2, 5, 17], [1, 5, 13], [1, 2, 3], [1, 1, 1]]
    arguments = [json.dumps(list(axial_ranks.BLOCKS)), json.dumps(shapes)]
    rank_processes.call(size, axial_ranks.check_blocks, arguments, tmp_path, seconds=900)


@pytest.mark.nightly
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_model(size, tmp_path) -> None:
    cases = [
        [crops, s, recycling, recompute, False, templates]
        for templates in (0, 4)
        for crops in ([13], [17], [17, 13], [2])
        for s in (1, 5)
        for recycling, recompute in ((0, False), (2, False), (1, True))
    ]
    cases += [[[13], 1, 0, False, True, 0], [[17, 13], 5, 0, False, True, 2]]
    rank_processes.call(size, axial_ranks.check_model, [json.dumps(cases)], tmp_path, seconds=900)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages", [(3,), pytest.param((0, 1, 2), marks=pytest.mark.nightly)], ids=lambda stages: f"stages {stages}"
)
def test_two_groups_of_two_ranks_train_as_fp64_torch(stages, tmp_path) -> None:
    """Axial 2 × data 2 through the trainer, on each ZeRO stage, with other micro-batches on each."""
    cases = [Case("fold", stage, *SPLITS[2][number]) for number, stage in enumerate(stages)]
    check(cases, 4, tmp_path, parallel={"sequence": 2})


@pytest.mark.nightly
def test_dropout_does_not_depend_on_ranks(tmp_path) -> None:
    """Four ranks, axial 2 × data 2, drop what one rank drops, through the trainer."""
    model = layouts.SMALL_FOLD
    evoformer = model["evoformer"] | {"dropout_msa": 0.5, "dropout_pair": 0.5}
    dropped = {"evoformer": evoformer, "structure": model["structure"] | {"dropout": 0.5}}
    losses = {}
    for ranks, sequence in ((1, 1), (4, 2)):
        config = layouts.configure("fold", tmp_path, model=dropped, parallel={"sequence": sequence})
        trees = {f"dropout_{ranks}": (config, layouts.deepspeed(1, 2, 8 * sequence // ranks))}
        losses[ranks] = train(tmp_path, ranks, trees)[f"dropout_{ranks}"]
    assert losses[4] == pytest.approx(losses[1], rel=2e-6)
    without = layouts.plain(layouts.configure("fold", tmp_path))[0]
    assert all(abs(a / b - 1) > 1e-3 for a, b in zip(losses[1], without, strict=True)), "there is dropout"
