"""Benchmark of axial parallelism: traced memory and bytes of one rank of many, and times of real ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds4sci.bench import axial


@pytest.mark.nightly
def test_ranks_divide_the_saved_memory() -> None:
    """A rank of P saves at most 1.1 / P of what one process saves."""
    whole, *parts = (axial.trace(size, *axial.TRACED_SIZES) for size in (1, 2, 4, 8))
    assert whole["forward"]["total"] == whole["backward"]["total"] == 0
    for part in parts:
        assert part["ranks"] * part["saved"] <= 1.1 * whole["saved"], part
        assert part["forward"]["total"] == _sent(part["ranks"]), part


def _sent(size: int) -> int:
    """Bytes sent in forward, bf16, by the formulas for even parts."""
    s, n = axial.TRACED_SIZES
    c = axial.block_config()
    gathered = s * n * c.c_outer + (c.heads_msa + 2 * c.heads_pair) * n * n
    exchanged = 2 * s * n * c.c_m + (6 * c.c_multiplication + 2 * c.c_z) * n * n
    return 2 * (gathered * size + exchanged) * (size - 1) // size**2


@pytest.mark.nightly
def test_the_benchmark_runs(tmp_path: Path) -> None:
    measurement = axial.run(tmp_path / "axial.json", quick=True)
    assert len(measurement.rows) == 4
    found = json.loads((tmp_path / "axial.json").read_text())
    assert set(found["seconds"]) == {"1", "2"}
    assert all(value > 0 for value in found["seconds"].values())
