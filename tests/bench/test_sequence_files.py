"""The benchmark of the sequence store runs, and compares readers that see the same sequences."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4sci.bench.sequence_files import measure


def test_measure(tmp_path: Path) -> None:
    pytest.importorskip("pyfaidx", reason="the comparison needs pyfaidx")
    path = tmp_path / "a.fa"
    path.write_text("".join(f">r{i} x\n{'ACGTacgtNN' * 6}\n{'GGATC' * i}A\n" for i in range(50)))
    found = measure([path], note="made up", rounds=1, reads=20)
    assert [row[1] for row in found.rows] == ["ds4sci", "Biopython", "pyfaidx"]
    assert all(len(row) == len(found.columns) for row in found.rows)
    assert all(row[2] > 0 for row in found.rows)
    assert found.notes[-1] == "made up"
    with pytest.raises(ValueError, match="name FASTA files"):
        measure([])
