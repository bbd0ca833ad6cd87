"""Benchmark of the mmCIF parsers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds4sci.bench import structure_files
from ds4sci.data.structures.parsers import mmcif
from tests.support.measurements import saved_rows

DATA = Path(__file__).parents[1] / "fixtures" / "mmcif"


def test_parsing(tmp_path: Path) -> None:
    rows = saved_rows(structure_files.measure(DATA, rounds=1), tmp_path)
    assert {row[0] for row in rows} == {"gemmi", "biopython"}
    with pytest.raises(ValueError, match=r"no \*\.cif"):
        structure_files.measure(tmp_path)


def test_biopython_reads_the_same_atoms() -> None:
    """Biopython reads at least the atoms of the record."""
    expected = mmcif.read(DATA / "1ubq.cif.gz", "A").atom_positions
    found = np.concatenate(structure_files.biopython_atoms(DATA / "1ubq.cif.gz")).tolist()
    assert {tuple(position) for position in expected[expected.any(-1)].tolist()} <= set(map(tuple, found))
