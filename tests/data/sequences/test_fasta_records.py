"""Protein FASTA records: wrapping, replaced letters and errors with the line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds4sci.data.sequences import fasta_records
from ds4sci.types import RESIDUES
from tests.support.sequence_files import write

shared_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_fasta(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ">one two three\nACDE\n FGH \n\n>2\nacdx*\n")
    assert fasta_records.read_fasta(path) == [("one", "ACDEFGH"), ("2", "ACDX")]
    record = fasta_records.make_record("one", "ACDEFGH")
    assert not record.atom_mask.any()
    assert record.residue_index.tolist() == list(range(7))
    zipped = tmp_path / "x.fa.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert fasta_records.read_fasta(zipped) == fasta_records.read_fasta(path)


def test_fasta_warns_about_replaced_letters(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ">one\nABZJUOC\n")
    with pytest.warns(UserWarning, match=r"line 1: 'one': 5 of 7 letters"):
        assert fasta_records.read_fasta(path) == [("one", "AXXXXXC")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FASTA entry"),
        ("ACDE\n", "line 1: no '>' before"),
        (">one\nACDE\nAC1E\n", "line 3: '1' at letter 3 of 'one'"),
        (">one\nAC-E\n", "line 2: '-' .*alignment"),
        (">one\nA*CE\n", r"line 2: '\*' at letter 2"),
        (">one\n>two\nAC\n", "line 1: 'one' has no sequence"),
        (">one\nAC\n>one\nAC\n", "line 3: the name 'one' was used on line 1"),
        ("> \nAC\n", "line 1: '>' without a name"),
    ],
)
def test_invalid_fasta_raises_with_the_line(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", text)
    with pytest.raises(ValueError, match=message) as caught:
        fasta_records.read_fasta(path)
    assert str(path) in str(caught.value)


names = st.text("abcXYZ019_|.", min_size=1, max_size=8)


@shared_folder
@given(st.dictionaries(names, st.text(RESIDUES + "X", min_size=1, max_size=30), min_size=1), st.integers(1, 10))
def test_fasta_round_trip_in_any_wrapping(tmp_path: Path, entries: dict[str, str], width: int) -> None:
    lines = []
    for name, sequence in entries.items():
        lines += [f">{name} note", *(sequence[at : at + width] for at in range(0, len(sequence), width))]
    assert fasta_records.read_fasta(write(tmp_path / "x.fa", "\n".join(lines))) == list(entries.items())
