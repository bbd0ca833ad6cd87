"""Structure module, heads and losses by rows, against one process, in fp64, to rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import axial_ends, rank_processes


@pytest.mark.slow
def test_structure_module_and_losses_by_rows(tmp_path: Path) -> None:
    cases = [(5, 13, "identity", 0.25), (1, 13, "chain", 0.0)]
    rank_processes.call(2, axial_ends.check_ends, [json.dumps(cases)], tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_case(size: int, tmp_path: Path) -> None:
    rank_processes.call(size, axial_ends.check_ends, [json.dumps(axial_ends.grid())], tmp_path, seconds=600)
