"""Special cases of PDB and mmCIF files, based on public bug reports: correct chains, and a status for every atom."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.data.structures.build import build
from ds4sci.data.structures.chain_filters import BuildSettings
from ds4sci.data.structures.parsers import pdb
from tests.support.structure_inputs import (
    CASES,
    DATA,
    ENTRIES,
    atom_line,
    cif_residue,
    count_atom_records,
    parse,
    parse_and_check,
    residue_lines,
    text_of,
    write_cif,
    write_pdb,
)

HELIX = "MKTAYIAKQRQISFVKSHFSRQLEERLG"
OTHER = "GDVNWKLPEETARHYCQSIVDTLFKMGA"
SIMULATED = "MKTAYIHKQRHISFHKSCFSDLEEKHLG"
EXPECTED: dict[str, dict[str, str]] = {
    "ter_inside_chain.pdb": {"ter_inside_chain_A": HELIX[:26] + OTHER[1:]},
    "blank_chain_ids.pdb": {"blank_chain_ids": HELIX + OTHER},
    "microheterogeneity.pdb": {"microheterogeneity_A": HELIX[:9] + "Q" + HELIX[10:]},
    "altloc.pdb": {"altloc_A": HELIX},
    "simulation_names.pdb": {"simulation_names_A": SIMULATED},
    "four_letter_names.pdb": {"four_letter_names_A": SIMULATED},
    "byte_order_mark.cif": {"bomcif_A": HELIX},
    "one_contradictory_chain.pdb": {"one_contradictory_chain_A": HELIX},
    "biopython_mse.cif": {"biopython_mse_A": HELIX[:13] + "M" + HELIX[14:], "biopython_mse_B": OTHER},
    "biopython_mse.pdb": {"biopython_mse_A": HELIX[:13] + "M" + HELIX[14:], "biopython_mse_B": OTHER},
    "water_same_asym.cif": {"water_same_asym_A": HELIX[:13] + "M" + HELIX[14:], "water_same_asym_B": OTHER},
    "gap.cif": {"gap_A": HELIX[:10] + HELIX[14:]},
    "gap.pdb": {"gap_A": HELIX[:10] + HELIX[14:]},
}


READABLE = [path for path in CASES if path.name in EXPECTED]


@pytest.mark.parametrize("path", READABLE, ids=lambda path: path.name)
def test_expected_chains(path: Path) -> None:
    parsed = parse_and_check(path)
    assert {record.id: record.sequence for record in parsed.records} == EXPECTED[path.name]
    for record in parsed.records:
        assert record.atom_mask[:, :3].all()
        assert (np.diff(record.residue_index) >= 1).all()


def test_every_case_has_an_expected_value() -> None:
    assert {path.name for path in CASES} == {*EXPECTED, "bad_numbers.pdb"}


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.name[:4])
def test_every_record_of_complete_entries_has_a_status(path: Path) -> None:
    parse_and_check(path)


def test_excluded_atoms_are_counted_by_status() -> None:
    counts = {
        path.name[:-7] if path in ENTRIES else path.name: parse_and_check(path).atoms for path in [*ENTRIES, *READABLE]
    }
    assert counts["2q2k"] == {"kept": 762, "nucleic acid": 407, "ligand": 15}
    assert counts["7l39"] == {"kept": 1289, "alternate location": 183, "water": 90, "ligand": 27}
    assert counts["1kd8"] == {"kept": 1698, "water": 288, "side chain of an unknown residue": 6}  # acetyl caps
    assert counts["biopython_mse.cif"] == counts["biopython_mse.pdb"] == {"kept": 278, "water": 3, "ligand": 3}
    assert counts["water_same_asym.cif"] == {"kept": 277, "water": 3}
    assert counts["altloc.pdb"] == {"kept": 139, "alternate location": 5}
    assert counts["microheterogeneity.pdb"] == {"kept": 139, "alternative residue at the same position": 5}
    assert counts["one_contradictory_chain.pdb"] == {"kept": 139, "rejected chain": 138}


def test_residue_numbers_give_the_gaps() -> None:
    gap = [*range(10), *range(14, 28)]
    assert parse(DATA / "structures" / "gap.cif").records[0].residue_index.tolist() == gap
    assert parse(DATA / "structures" / "gap.pdb").records[0].residue_index.tolist() == gap
    ter = parse(DATA / "structures" / "ter_inside_chain.pdb").records[0].residue_index.tolist()
    assert ter == [*range(26), *range(29, 56)]
    blank = parse(DATA / "structures" / "blank_chain_ids.pdb").records[0].residue_index
    assert np.flatnonzero(np.diff(blank) > 1).tolist() == [27]  # a TER without a bond is a chain break


def test_the_most_complete_conformer_is_selected() -> None:
    record = parse(DATA / "structures" / "altloc.pdb").records[0]
    assert record.atom_mask[12, [ATOM37_INDEX[name] for name in ("N", "CA", "C", "O", "CB")]].all()
    assert record.atom_positions[12, ATOM37_INDEX["CB"]].tolist() == pytest.approx([-0.65, 3.225, 17.42])


def test_an_inconsistent_chain_does_not_affect_other_chains(tmp_path: Path) -> None:
    path = DATA / "structures" / "one_contradictory_chain.pdb"
    reason = r"residue THR 11 does not fit into the entity's sequence of 26 residues; the file is inconsistent"
    with pytest.warns(UserWarning, match=f"chain B is excluded: {reason}"):
        assert [record.id for record in pdb.read(path)] == ["one_contradictory_chain_A"]
    with pytest.raises(ValueError, match=f"one_contradictory_chain.pdb: chain B is rejected: {reason}"):
        pdb.read(path, "B")
    report = build(path.parent, tmp_path / "set.npz", jobs=1, settings=BuildSettings(keep_duplicates=True))
    rows = {row["chain"] or row["file"] + row["status"]: row for row in report.rows}
    assert rows["one_contradictory_chain_A"]["status"] == "accepted"
    assert rows["one_contradictory_chain_B"]["kind"] == "sequence mismatch"
    assert "bad_numbers.pdb: line 21: x is '********'" in rows["bad_numbers.pdbrejected"]["reason"]
    records = sum(count_atom_records(text_of(one)) for one in READABLE)
    assert sum(report.atoms.values()) == records
    assert f"{records:,} atom records: " in report.summary()


def test_a_second_molecule_with_the_same_chain_id_is_another_chain(tmp_path: Path) -> None:
    lines = [
        line for shift in (0.0, 50.0) for at in (1, 2, 3) for line in residue_lines("ALA", str(at), 3.8 * at + shift)
    ]
    parsed = parse_and_check(write_pdb(tmp_path / "x.pdb", lines))
    assert [(record.id, record.sequence) for record in parsed.records] == [("x_A", "AAA"), ("x_A-2", "AAA")]
    assert parsed.records[1].atom_positions[0, 0, 0] == np.float32(53.8)


def test_every_excluded_atom_has_its_status(tmp_path: Path) -> None:
    lines = residue_lines("ALA", "1", 0.0) + residue_lines("GLY", "2", 3.8)
    lines += [atom_line("H", "GLY", "2", (9, 9, 9), element="H"), atom_line("1HB", "GLY", "2", (9, 9, 9), element="H")]
    lines += [atom_line("P", "GLY", "2", (9, 9, 9)), atom_line("CA", "GLY", "2", (9, 9, 9))]
    lines += ["TER", *residue_lines("GLY", "9", 99.0, kind="HETATM")]
    lines += [
        atom_line("O", "HOH", "8", (8, 8, 8), kind="HETATM"),
        atom_line("ZN", "ZN", "7", (7, 7, 7), kind="HETATM"),
    ]
    lines += [atom_line("P", "DA", "1", (1, 1, 1), chain="B"), "END", *residue_lines("ALA", "1", 0.0)]
    parsed = parse_and_check(write_pdb(tmp_path / "x.pdb", lines))
    assert [record.sequence for record in parsed.records] == ["AG"]
    assert parsed.atoms == {
        "kept": 8, "ligand": 5, "other model": 4, "hydrogen": 2, "water": 1, "nucleic acid": 1, "duplicate atom": 1,
        "atom not in the residue": 1,
    }  # fmt: skip
    assert [(one.chain, one.kind, one.reason) for one in parsed.excluded] == [
        ("B", "not a protein", "residues by kind: 1 nucleic acid")
    ]


def test_other_data_blocks_are_counted(tmp_path: Path) -> None:
    path = write_cif(tmp_path / "x.cif", ["label_asym_id", "label_seq_id"], cif_residue("ALA", "A 1", 0.0))
    path.write_text(path.read_text() + path.read_text().replace("data_x", "data_y"))
    assert parse_and_check(path).atoms == {"kept": 4, "other data block": 4}


def test_a_backbone_split_between_conformers_is_complete(tmp_path: Path) -> None:
    """All backbone atoms are kept if each is in only one of two labels."""
    lines = residue_lines("ALA", "1", 0.0)
    lines = [line[:16] + ("A" if at < 2 else "B") + line[17:] for at, line in enumerate(lines)]
    (record,) = parse_and_check(write_pdb(tmp_path / "x.pdb", lines)).records
    assert record.atom_mask[0].sum() == 4


@pytest.mark.parametrize(("first", "second", "x"), [(0.6, 0.4, 0.0), (0.4, 0.6, 1.0), (0.5, 0.5, 0.0)])
def test_occupancy_decides_between_complete_conformers(first: float, second: float, x: float, tmp_path: Path) -> None:
    lines = residue_lines("SER", "1", 0.0)
    for label, occupancy, shift in (("A", first, 0.0), ("B", second, 1.0)):
        lines += [
            atom_line(name, "SER", "1", (shift, 0, 1.5), altloc=label, occupancy=occupancy) for name in ("CB", "OG")
        ]
    (record,) = parse_and_check(write_pdb(tmp_path / "x.pdb", lines)).records
    assert record.atom_positions[0, ATOM37_INDEX["OG"], 0] == x


def test_an_inconsistent_mmcif_chain_does_not_affect_other_chains(tmp_path: Path) -> None:
    whole = text_of(next(path for path in ENTRIES if path.name.startswith("2q2k")))
    path = tmp_path / "2q2k.cif"
    path.write_text(re.sub(r"(?m)^(ATOM +\d+ .* C +2 +)45( .*)$", r"\g<1>99\2", whole))
    assert path.read_text() != whole
    parsed = parse_and_check(path)
    assert [record.id for record in parsed.records] == ["2Q2K_A"]
    assert [(one.chain, one.kind) for one in parsed.excluded] == [("F", "not a protein"), ("B", "sequence mismatch")]


def test_a_sequence_without_atoms_is_excluded(tmp_path: Path) -> None:
    lines = ["SEQRES   1 A    2  ALA GLY", "SEQRES   1 B    3  ALA GLY TRP"]
    lines += residue_lines("ALA", "1", 0.0) + residue_lines("GLY", "2", 3.8)
    parsed = parse_and_check(write_pdb(tmp_path / "x.pdb", lines))
    assert [record.id for record in parsed.records] == ["x_A"]
    assert parsed.excluded == [("B", "no atoms", "a sequence of 3 residues without atom records")]


def test_chains_of_d_amino_acids_are_excluded(tmp_path: Path) -> None:
    lines = [line for at, name in enumerate(["DAL", "DSN", "DVA"]) for line in residue_lines(name, str(at), 3.8 * at)]
    parsed = parse_and_check(write_pdb(tmp_path / "x.pdb", lines))
    assert parsed.records == []
    assert parsed.excluded == [("A", "not a protein", "residues by kind: 3 other polymer")]
    assert parsed.atoms == {"kept": 0, "other polymer": 12}


def test_a_chain_of_hetatm_records(tmp_path: Path) -> None:
    lines = [line for at in range(1, 4) for line in residue_lines("ALA", str(at), 3.8 * at, kind="HETATM")]
    lines += residue_lines("GLY", "400", 99.0, kind="HETATM")
    parsed = parse_and_check(write_pdb(tmp_path / "x.pdb", lines))
    assert [record.sequence for record in parsed.records] == ["AAA"]
    assert parsed.atoms == {"kept": 12, "ligand": 4}


def test_separated_records_of_a_residue_are_merged(tmp_path: Path) -> None:
    """Hydrogens or conformers at the end of the file. The time is linear in their number."""
    lines = residue_lines("ALA", "1", 0.0) + residue_lines("GLY", "2", 3.8)
    late = [atom_line("CB", "ALA", "1", (0.0, 1.0, 1.0)), atom_line("OXT", "GLY", "2", (9.0, 1.0, 1.0))]
    ids = [("ALA", "1"), ("GLY", "2")]
    many = [atom_line(f"X{at // 2:03d}", *ids[at % 2], (1.0, 1.0, 1.0)) for at in range(1800)]
    parsed = parse_and_check(write_pdb(tmp_path / "x.pdb", [*lines, *late, *many]))
    (record,) = parsed.records
    assert record.sequence == "AG"
    assert record.atom_mask.sum() == 10
