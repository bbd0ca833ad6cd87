"""The sequence-store benchmark compares readers on the same sequences."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4sci.bench.sequence_files import measure


def test_measure(tmp_path: Path) -> None:
    pytest.importorskip("pyfaidx", reason="the comparison needs pyfaidx")
    path = tmp_path / "a.fa"
    path.write_text("".join(f">r{i} x\n{'ACGTacgtNN' * 6}\n{'GGATC' * i}A\n" for i in range(50)))
    found = measure([path], note="synthetic", rounds=1, reads=20)
    assert [row[1] for row in found.rows] == ["ds4sci", "Biopython", "pyfaidx"]
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert all(row[2] > 0 for row in found.rows)
    assert found.notes[-1] == "synthetic"
    with pytest.raises(ValueError, match="no FASTA files"):
        measure([])
