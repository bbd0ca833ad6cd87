"""Damaged and truncated files of every text format: a result, or a ``ValueError`` with the file (hypothesis)."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds4sci.chemistry.residue_codes import GAP
from ds4sci.data.alignments import msa
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures.parsers import mmcif, pdb
from ds4sci.types import Msa

DATA = Path(__file__).parents[1] / "fixtures"


def small_pdb() -> bytes:
    from tests.support.structure_inputs import residue_lines

    lines = ["SEQRES   1 A    3  GLY ALA MSE", *residue_lines("GLY", "1", 0.0), *residue_lines("ALA", "1A", 3.8)]
    return "\n".join([*lines, *residue_lines("MSE", "3", 7.6, kind="HETATM"), "TER", "END", ""]).encode()


WHOLE = {
    "x.cif": (gzip.decompress((DATA / "mmcif" / "1ubq.cif.gz").read_bytes()), mmcif.read),
    "x.pdb": (small_pdb(), pdb.read),
    "x.a3m": ((DATA / "msa" / "bfd_uniclust_hits.a3m").read_bytes(), msa.read),
    "x.sto": ((DATA / "msa" / "mgnify_hits.sto").read_bytes(), msa.read),
    "x.cif.gz": ((DATA / "mmcif" / "1ubq.cif.gz").read_bytes(), mmcif.read),
    "x.fa": (b">one\nACDEFG\n>two x\nACD\nEFG\n", fasta_records.read_fasta),
}


def outcome(read: Callable[[Path], Any], path: Path) -> Any:
    """The result of the reader, or the text of its ``ValueError``."""
    try:
        return read(path)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", list(WHOLE))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cut=st.floats(0, 1),
    damage=st.lists(st.tuples(st.floats(0, 0.999), st.binary(min_size=1, max_size=4)), max_size=4),
)
def test_damage_gives_a_result_or_an_error_that_names_the_file(
    name: str, cut: float, damage: list[tuple[float, bytes]], tmp_path: Path
) -> None:
    """Files truncated at any byte and overwritten anywhere raise only ``ValueError``."""
    whole, read = WHOLE[name]
    content = bytearray(whole[: int(cut * len(whole))] if cut < 0.9 else whole)
    for where, replacement in damage:
        at = int(where * len(content))
        content[at : at + len(replacement)] = replacement
    path = tmp_path / name
    path.write_bytes(content)
    result = outcome(read, path)
    assert isinstance(result, list | Msa) or str(path) in result
    if isinstance(result, Msa):
        assert (result.sequences <= GAP).all()
        assert (result.deletions >= 0).all()


@pytest.mark.parametrize("name", ["x.pdb", "x.a3m", "x.sto", "x.fa"])
def test_truncation_at_every_byte(name: str, tmp_path: Path) -> None:
    whole, read = WHOLE[name]
    path = tmp_path / name
    for size in range(0, len(whole), 1 if len(whole) < 1000 else 7):
        path.write_bytes(whole[:size])
        result = outcome(read, path)
        assert isinstance(result, list | Msa) or str(path) in result
