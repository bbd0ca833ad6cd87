"""Readers of A3M and Stockholm alignments, merging and attachment."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest
from Bio import AlignIO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds4sci.chemistry.residue_codes import decode, encode
from ds4sci.data.alignments import alignment_files, msa
from ds4sci.data.sequences import fasta_records
from ds4sci.types import RESIDUES, Msa, Record
from tests.support.sequence_files import write

DATA = Path(__file__).parents[2] / "fixtures"
QUERY = "MGSSHHHHHHSSGLVPGSHMDKKETKHLLKIKKEDYPQIFDFLENVPRGTKTAHIREALRRYIEEIGENP"
shared_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- real files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((DATA / "msa").glob("*")), ids=lambda path: path.name)
def test_real_alignments(path: Path, tmp_path: Path) -> None:
    got = msa.read(path)
    assert decode(got.sequences[0]) == QUERY
    assert got.sequences.shape == got.deletions.shape == (len(got.names), 70)
    assert len({row.tobytes() for row in got.sequences}) == len(got.sequences)
    zipped = tmp_path / (path.name + ".gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(msa.read(zipped).sequences, got.sequences)


@pytest.mark.parametrize("name", ["mgnify", "uniprot", "uniref90"])
def test_stockholm_against_biopython(name: str) -> None:
    """Residues and deletion counts agree with Biopython's reading of the same file."""
    path = DATA / "msa" / f"{name}_hits.sto"
    rows = {row.id: str(row.seq) for row in AlignIO.read(path, "stockholm")}
    query = next(iter(rows.values()))
    got = msa.read(path)
    for at, row_name in enumerate(got.names):
        row, waiting = rows[row_name], 0
        letters, deletions = [], []
        for ours, theirs in zip(query, row, strict=True):
            if ours == "-":
                waiting += theirs != "-"
            else:
                letters.append(theirs)
                deletions.append(waiting)
                waiting = 0
        assert decode(got.sequences[at]) == "".join(letters)
        assert got.deletions[at].tolist() == deletions


def test_merge_removes_duplicate_rows() -> None:
    paths = sorted((DATA / "msa").glob("*"))
    merged = msa.merge([msa.read(path) for path in paths])
    assert decode(merged.sequences[0]) == QUERY
    assert len({row.tobytes() for row in merged.sequences}) == len(merged.sequences) == len(merged.names)
    assert set(merged.names) >= {"query", "UniRef90_UPI000A061283/1-51"}


def test_index_ignores_the_case_of_the_entry_id(tmp_path: Path) -> None:
    for name in ("1abc_A.a3m", "1abc_a.sto.gz", "2XYZ_B/x.sto", "2XYZ_B/notes.txt", "lone.a3m"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "notes.txt").write_text("")
    found = alignment_files.index_folder(tmp_path)
    assert {key: [path.name for path in paths] for key, paths in found.items()} == {
        "1abc_A": ["1abc_A.a3m"],
        "1abc_a": ["1abc_a.sto.gz"],
        "2xyz_B": ["notes.txt", "x.sto"],
        "lone": ["lone.a3m"],
    }
    assert alignment_files.chain_key("1ABC_A") == "1abc_A"
    assert [alignment_files.why_not(path) is None for path in found["2xyz_B"]] == [False, True]
    with pytest.raises(ValueError, match="no such folder"):
        alignment_files.index_folder(tmp_path / "absent")


# --- formats by hand ----------------------------------------------------------------------------------------------


def test_a3m_letters_and_deletions(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.a3m",
        "#A3M#\n>ss_pred\nCCCC\n>q desc\nACDE\n>one\nA--E\n>two\nabAcC\nD-ggg\n>again\nxA--E\n>rare\nBUZJ\n",
    )
    got = msa.read(path)
    assert got.names == ("q", "one", "two", "rare")
    assert [decode(row) for row in got.sequences] == ["ACDE", "A--E", "ACD-", "DCEX"]
    assert got.deletions.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0]]


def test_gaps_of_the_query_become_deletions(tmp_path: Path) -> None:
    path = write(tmp_path / "x.a3m", ">q\n-A-C-\n>r\nGxAyGC-\n>s\n-A-CG\n")
    got = msa.read(path)
    assert [decode(row) for row in got.sequences] == ["AC"]  # r and s have the same residues
    again = msa.read(write(tmp_path / "y.a3m", ">q\n-A-C-\n>r\nGxAyGW-\n"))
    assert decode(again.sequences[1]) == "AW"
    assert again.deletions[1].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.a3m", "", "no sequence"),
        ("x.a3m", "ACDE\n", "line 1: text before"),
        ("x.a3m", ">q\nACDE\n>r\nACD\n", "line 3: row 'r' has 3 columns .*expected 4"),
        ("x.a3m", ">q\nACDE\n>r\nAC1E\n", "line 3: row 'r' has '1' in column 3"),
        ("x.a3m", ">q\nACdE\n", "line 1: the query 'q' .*lower-case letters"),
        ("x.a3m", ">q\n----\n", "only gaps"),
        ("x.sto", ">q\nACDE\n", "STOCKHOLM"),
        ("x.sto", "# STOCKHOLM 1.0\nq ACDE\n", "truncated"),
        ("x.sto", "# STOCKHOLM 1.0\n//\n", "no sequence"),
        ("x.sto", "# STOCKHOLM 1.0\nq ACDE\nr ACD\n//\n", "line 3: row 'r' has 3 columns"),
        ("x.sto", "# STOCKHOLM 1.0\nq AC DE\n//\n", "line 2: expected a name"),
        ("x.sto", "# STOCKHOLM 1.0\nq AC*E\n//\n", r"line 2: row 'q' has '\*' in column 3"),
        ("x.sto", "# STOCKHOLM 1.0\nq ACDE\n//\n# STOCKHOLM 1.0\n", "no '//' .* from line 4; the file is truncated"),
        ("x.sto", "# STOCKHOLM 1.0\nq ACDE\n//\nq ACDE\n", "line 4: text after the end .*line 3"),
        ("x.aln", "", "unknown alignment format"),
    ],
)
def test_invalid_alignments_raise_with_file_and_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message) as caught:
        msa.read(path)
    assert str(path) in str(caught.value)


def record_of(sequence: str) -> Record:
    return fasta_records.make_record("1ABC_A", sequence)


def test_attach_replaces_row_0_by_the_record_sequence() -> None:
    alignment = Msa(np.stack([encode("ACXE"), encode("A-DE")]), np.zeros((2, 4), np.int32), ("q", "r"))
    got = msa.attach(record_of("ACDX"), alignment, "x.a3m")
    assert got.msa is not None
    assert decode(got.msa.sequences[0]) == "ACDX"
    assert decode(alignment.sequences[0]) == "ACXE"  # the input is not changed


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("ACWEF", r"x\.a3m: the query .* 1ABC_A: at residue 3 the alignment has W, the chain D"),
        ("ACDE", "at residue 5 the alignment has its end, the chain F"),
        ("ACDEFG", "at residue 6 the alignment has G, the chain its end"),
    ],
)
def test_attach_names_the_first_difference(query: str, message: str) -> None:
    alignment = Msa(encode(query)[None], np.zeros((1, len(query)), np.int32), ("q",))
    with pytest.raises(ValueError, match=message):
        msa.attach(record_of("ACDEF"), alignment, "x.a3m")


# --- properties ---------------------------------------------------------------------------------------------------


@st.composite
def alignments(draw: st.DrawFn) -> Msa:
    n = draw(st.integers(1, 12))
    query = draw(st.text(RESIDUES, min_size=n, max_size=n))
    others = draw(st.lists(st.text(RESIDUES + "X-", min_size=n, max_size=n), max_size=6, unique=True))
    rows = [query, *[row for row in others if row != query]]
    counts = draw(st.lists(st.integers(0, 3), min_size=n * len(rows), max_size=n * len(rows)))
    deletions = np.array(counts, np.int32).reshape(len(rows), n)
    deletions[0] = 0
    names = tuple(f"row{at}/1-{n}" for at in range(len(rows)))
    return Msa(np.stack([encode(row) for row in rows]), deletions, names)


def assert_same(one: Msa, other: Msa) -> None:
    np.testing.assert_array_equal(one.sequences, other.sequences)
    np.testing.assert_array_equal(one.deletions, other.deletions)
    assert one.names == other.names


@shared_folder
@given(alignments())
def test_a3m_round_trip(tmp_path: Path, alignment: Msa) -> None:
    msa.write_a3m(tmp_path / "x.a3m", alignment)
    assert_same(msa.read(tmp_path / "x.a3m"), alignment)


@shared_folder
@given(alignments(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_stockholm_in_any_wrapping(tmp_path: Path, alignment: Msa, width: int, shuffle: random.Random) -> None:
    """Deletions are written as columns with a gap in the query; rows are wrapped at any width."""
    n, depth = alignment.sequences.shape[1], len(alignment.names)
    columns: list[list[str]] = []
    for at in range(n):
        for extra in range(int(alignment.deletions[:, at].max())):
            columns.append(
                ["a" if alignment.deletions[row, at] > extra else shuffle.choice("-.") for row in range(depth)]
            )
        columns.append(list(decode(alignment.sequences[:, at])))
    rows = ["".join(column[row] for column in columns) for row in range(depth)]
    lines = ["# STOCKHOLM 1.0", "#=GF ID test", ""]
    for begin in range(0, len(columns), width):
        lines += [f"{name}   {row[begin : begin + width]}" for name, row in zip(alignment.names, rows, strict=True)]
        lines += ["#=GC RF   " + "x" * width, ""]
    write(tmp_path / "x.sto", "\n".join([*lines, "//", ""]))
    assert_same(msa.read(tmp_path / "x.sto"), alignment)
