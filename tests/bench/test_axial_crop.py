"""Search for the longest crop with axial parallelism: memory of a rank, and ranks that run out of it."""

from __future__ import annotations

import pytest

from ds4sci.bench.axial_crop import CONFIG, peak_of_step

pytestmark = pytest.mark.nightly


def test_two_ranks_halve_the_memory_of_pairs() -> None:
    small, large = 32, 192
    one, two = ([peak_of_step(CONFIG, n, ranks) for n in (small, large)] for ranks in (1, 2))
    assert two[1] - two[0] < 0.62 * (one[1] - one[0])


def test_a_rank_that_runs_out_of_memory_ends_the_others() -> None:
    assert peak_of_step(CONFIG, 256, 2, limit=0.4e9) == 1.6e9
