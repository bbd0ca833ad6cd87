"""A measurement on one and two ranks, and its report and prediction."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4sci.scaling.efficiency import rows
from ds4sci.scaling.logs import read_logs
from ds4sci.scaling.measure import MeasurementPlan, measure

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_one_and_two_ranks(tmp_path: Path) -> None:
    small = ("data.points=20", "data.boundary_points=4", "data.valid_functions=2")
    what = MeasurementPlan(
        ROOT / "configs" / "benchmarks" / "operator.toml", small, (1, 2), tmp_path, steps=3, repeats=1
    )
    measure(what, print)
    found = {(one.mode, one.ranks): one for one in rows(read_logs([tmp_path]))}
    assert set(found) == {("strong", 1), ("strong", 2), ("weak", 1), ("weak", 2)}
    for one in found.values():
        assert 0 < one.seconds < 60
        assert one.utilization is not None
        assert 0 < one.utilization < 1
        assert one.communication is not None
        assert 0 <= one.communication < 1
        assert one.memory_mb > 50
    assert found["strong", 1].batch == found["strong", 2].batch == 64
    assert found["weak", 2].batch == 2 * found["weak", 1].batch
