"""Special cases of PDB and mmCIF files, based on public bug reports: correct chains, and a status for every atom."""

from __future__ import annotations

import re
from pathlib import Path

import gemmi
import numpy as np
import pytest

from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.data.structures.build import build
from ds4sci.data.structures.chain_filters import BuildSettings
from ds4sci.data.structures.parsers import mmcif, pdb
from tests.support.structure_inputs import (
    BACKBONE,
    CASES,
    DATA,
    ENTRIES,
    atom_line,
    count_atom_records,
    parse,
    parse_and_check,
    residue_lines,
    text_of,
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


BAD_LINES = {
    "stars": ("ATOM      2  CA  ALA A   1    ************************  1.00 20.00           C", "x is '[*]{8}'"),
    "wide x": ("ATOM      2  CA  ALA A   1    -1000.123   2.000   3.000  1.00 20.00           C", "x is '-1000.12'"),
    "wide numbers": ("ATOM      2  CA  ALA A   1    -1000.1231000.1231000.123  1.00 20.00", "x is '-1000.12'"),
    "wide, full occupancy": ("ATOM      2  CA  ALA A   1    -1000.1231000.1231000.123100.00 20.00", "x is '-1000.12'"),
    "wide, no occupancy": ("ATOM      2  CA  ALA A   1    -1000.1231000.1231000.123", "x is '-1000.12'"),
    "serial": ("ATOM  100000  CA  ALA A   1      11.000   2.000   3.000  1.00 20.00           C", "y is '0   2.00'"),
    "nan": ("ATOM      2  CA  ALA A   1         nan     nan     nan  1.00 20.00           C", "x is '     nan'"),
    "blank": ("ATOM      2  CA  ALA A   1               2.000   3.000  1.00 20.00           C", "x is '        '"),
    "no point": ("ATOM      2  CA  ALA A   1       11000   2.000   3.000  1.00 20.00           C", "x is '   11000'"),
    "short": ("ATOM      2  CA  ALA A   1      11.000   2.000   3.0", "the line ends at column 52"),
    "occupancy": ("ATOM      2  CA  ALA A   1      11.000   2.000   3.000  x.00 20.00           C", "occupancy is"),
    "b factor": ("ATOM      2  CA  ALA A   1      11.000   2.000   3.000  1.00******           C", "B-factor is"),
    "number": (
        "ATOM      2  CA  ALA A****      11.000   2.000   3.000  1.00 20.00           C",
        "residue number '[*]{4}'",
    ),
    "digits": (
        "ATOM      2  CA  ALA A1_00      11.000   2.000   3.000  1.00 20.00           C",
        "residue number '1_00'",
    ),
    "blank before": (
        " ATOM     2  CA  ALA A   1      11.000   2.000   3.000  1.00 20.00           C",
        "record name ' ATOM '",
    ),
    "name": ("ATOM 100002  CA  ALA A   1      11.000   2.000   3.000  1.00 20.00           C", "record name"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_numbers_outside_their_columns_raise_with_the_line(case: str, tmp_path: Path) -> None:
    line, message = BAD_LINES[case]
    path = write_pdb(tmp_path / "x.pdb", ["REMARK", *residue_lines("ALA", "0", 0.0), line])
    with pytest.raises(ValueError, match=rf"x\.pdb: line 6: {message}"):
        pdb.read(path)


@pytest.mark.parametrize(
    ("x", "occupancy", "value"),
    [
        ("12345.67", "  1.00", 12345.67),
        ("-1234.56", "  1.00", -1234.56),
        (" 1.50000", "      ", 1.5),
        ("  -0.001", "     1", -0.001),
    ],
)
def test_other_number_formats_are_accepted(x: str, occupancy: str, value: float, tmp_path: Path) -> None:
    """OpenMM drops decimals of large numbers; some programs write more decimals or no occupancy."""
    line = f"ATOM      2  CA  GLY A   2    {x}   2.000   3.000{occupancy}"
    record = pdb.read(write_pdb(tmp_path / "x.pdb", [*residue_lines("ALA", "1", 0.0), line]), "A")
    assert record.atom_positions[1, 1, 0] == np.float32(value)


def test_hybrid_36_residue_numbers(tmp_path: Path) -> None:
    lines = [
        line
        for at, number in enumerate(["9998", "9999", "A000", "A001"])
        for line in residue_lines("ALA", number, 3.8 * at)
    ]
    lines = [line.replace(" 000A ", "A000 ") for line in lines]
    path = tmp_path / "x.pdb"
    for at, line in enumerate(lines):  # atom_line interprets a final letter as an insertion code
        number = ["9998", "9999", "A000", "A001"][at // 4]
        lines[at] = line[:22] + number + " " + line[27:]
    assert pdb.read(write_pdb(path, lines), "A").residue_index.tolist() == [0, 1, 2, 3]
    assert [residue.seqid.num for residue in gemmi.read_structure(str(path))[0]["A"]] == [9998, 9999, 10000, 10001]


SITE = """data_x
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.label_atom_id
_atom_site.label_comp_id
{tags}
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
"""


def write_cif(path: Path, tags: list[str], rows: list[str], before: str = "", after: str = "") -> Path:
    head = SITE.format(tags="\n".join(f"_atom_site.{tag}" for tag in tags))
    path.write_text(head.replace("data_x\n", f"data_x\n{before}") + "\n".join(rows) + f"\n#\n{after}")
    return path


def cif_residue(name: str, ids: str, shift: float, group: str = "ATOM") -> list[str]:
    return [f"{group} 1 {atom} {name} {ids} {x + shift:.3f} {y:.3f} {z:.3f}" for atom, (x, y, z) in BACKBONE.items()]


@pytest.mark.parametrize("value", ["?", ".", "abc", "nan", "inf", "1_0", "1e999", "1e39", "'1.0 2'"])
def test_invalid_mmcif_coordinates_raise_with_the_line(value: str, tmp_path: Path) -> None:
    rows = cif_residue("ALA", "A 1", 0.0)
    rows[2] = rows[2].replace("2.000", value)
    path = write_cif(tmp_path / "x.cif", ["label_asym_id", "label_seq_id"], rows)
    where = "row 3 of _atom_site" if " " in value else "line 14"
    with pytest.raises(ValueError, match=rf"x\.cif: {where}: _atom_site.Cartn_x is .*; expected a finite number"):
        mmcif.read(path)


def test_mmcif_numbers_may_have_uncertainties_and_exponents(tmp_path: Path) -> None:
    rows = cif_residue("ALA", "A 1", 0.0)
    rows[1] = rows[1].replace("1.460", "1.46(3)")
    rows[2] = rows[2].replace("2.000", "0.2E1")
    record = mmcif.read(write_cif(tmp_path / "x.cif", ["label_asym_id", "label_seq_id"], rows), "A")
    assert record.atom_positions[0, :3, 0].tolist() == pytest.approx([0.0, 1.46, 2.0])


@pytest.mark.parametrize(
    "tags", [["auth_asym_id", "auth_seq_id"], ["label_asym_id", "label_seq_id"], ["auth_asym_id", "label_seq_id"]]
)
def test_author_or_label_ids_are_sufficient(tags: list[str], tmp_path: Path) -> None:
    rows = [row for at, name in enumerate(["ALA", "GLY", "TRP"]) for row in cif_residue(name, f"A {at + 5}", 3.8 * at)]
    path = write_cif(tmp_path / "x.cif", tags, [*rows, "HETATM 1 O HOH A 9 30.0 0.0 0.0"])
    parsed = parse_and_check(path)
    assert [(record.id, record.sequence) for record in parsed.records] == [("x_A", "AGW")]
    assert parsed.atoms == {"kept": 12, "water": 1}


@pytest.mark.parametrize("code", ["pdbx_seq_one_letter_code", "pdbx_seq_one_letter_code_can"])
@pytest.mark.parametrize("entity", [True, False])
@pytest.mark.parametrize("numbered", [True, False])
def test_the_one_letter_sequence_of_the_entity_is_used(code: str, entity: bool, numbered: bool, tmp_path: Path) -> None:
    sequence = "A(MSE)GWK" if code.endswith("code") else "AMGWK"
    before = f"_entity_poly.entity_id 1\n_entity_poly.type 'polypeptide(L)'\n_entity_poly.{code}\n"
    before += f";{sequence[:5]}\n{sequence[5:]}\n;\n"
    before += "_entity.id 1\n_entity.type polymer\n" if entity else ""
    rows = [
        row
        for at, name in ((1, "MSE"), (2, "GLY"), (3, "TRP"))
        for row in cif_residue(name, f"A 1 {at + 1 if numbered else '.'} {at + 7}", 3.8 * at)
    ]
    path = write_cif(
        tmp_path / "x.cif", ["label_asym_id", "label_entity_id", "label_seq_id", "auth_seq_id"], rows, before
    )
    (record,) = parse_and_check(path).records
    assert record.sequence == "AMGWK"
    assert record.atom_mask.any(1).tolist() == [False, True, True, True, False]


LONG = "UNREASONABLYLONG"


@pytest.mark.parametrize("column", ["atom", "residue", "chain", "entity", "altloc"])
def test_long_names_are_read(column: str, tmp_path: Path) -> None:
    """The flat structures of gemmi hold only seven characters."""
    names = {"atom": "XE", "residue": "LIG", "chain": "A", "entity": "1", "altloc": "."} | {column: LONG}
    rows = [
        row for at in range(3) for row in cif_residue("ALA", f"{names['chain']} {names['entity']} {at + 1} .", 3.8 * at)
    ]
    rows.append(
        f"HETATM 9 {names['atom']} {names['residue']} {names['chain']} {names['entity']} . {names['altloc']} 9.0 9. 9.0"
    )
    path = write_cif(tmp_path / "x.cif", ["label_asym_id", "label_entity_id", "label_seq_id", "label_alt_id"], rows)
    parsed = parse_and_check(path)
    assert [(record.id, record.sequence) for record in parsed.records] == [(f"x_{names['chain']}", "AAA")]
    assert parsed.atoms == {"kept": 12, "ligand": 1}


@pytest.mark.parametrize(
    ("name", "letter"),
    [*((name, "H") for name in ("HID", "HIE", "HIP", "HSD", "HSE", "HSP", "HISD", "HISE", "HISH", "NHID", "CHIE")),
     *((name, "C") for name in ("CYX", "CYM", "CYSH", "CYS2", "NCYX")), ("ASH", "D"), ("ASPP", "D"), ("GLH", "E"),
     ("LYN", "K"), ("LSN", "K"), ("LYSH", "K"), ("ARN", "R"), ("NMET", "M"), ("CGLY", "G"), ("NVAL", "V")],
)  # fmt: skip
def test_residue_names_of_simulation_programs(name: str, letter: str, tmp_path: Path) -> None:
    lines = residue_lines("ALA", "1", 0.0) + residue_lines(name, "2", 3.8) + residue_lines("ALA", "3", 7.6)
    for kind in ("ATOM  ", "HETATM"):
        path = write_pdb(tmp_path / "x.pdb", [kind + line[6:] for line in lines])
        (record,) = parse_and_check(path).records
        assert (record.id, record.sequence) == ("x_A", f"A{letter}A")
        assert record.atom_mask.sum() == 12
    ids = [f"A {at + 1}" for at in range(3)]
    rows = [row for at, one in enumerate(["ALA", name, "ALA"]) for row in cif_residue(one, ids[at], 3.8 * at)]
    (record,) = parse_and_check(write_cif(tmp_path / "x.cif", ["label_asym_id", "auth_seq_id"], rows)).records
    assert record.sequence == f"A{letter}A"


def test_homoserine_is_not_histidine(tmp_path: Path) -> None:
    """HSE is histidine in CHARMM and homoserine in the PDB. The atoms decide."""
    lines = residue_lines("ALA", "1", 0.0) + residue_lines("HSE", "2", 3.8) + residue_lines("ALA", "3", 7.6)
    lines.insert(8, atom_line("OD", "HSE", "2", (5.0, 0.0, 3.0)))
    parsed = parse_and_check(write_pdb(tmp_path / "x.pdb", lines))
    assert parsed.records[0].sequence == "AXA"
    assert parsed.atoms == {"kept": 12, "side chain of an unknown residue": 1}


def test_charmm_atom_names(tmp_path: Path) -> None:
    lines = residue_lines("ILE", "1", 0.0)
    for at, name in enumerate(("CB", "CG1", "CG2", "CD")):
        lines.append(atom_line(name, "ILE", "1", (0.0, at, 1.0)))
    last = [line for line in residue_lines("LYS", "2", 3.8) if " O  " not in line]
    lines += [*last, atom_line("OT1", "LYS", "2", (5.1, 2.4, 0.0)), atom_line("OT2", "LYS", "2", (6.1, 2.4, 0.0))]
    (record,) = parse_and_check(write_pdb(tmp_path / "x.pdb", lines)).records
    assert record.atom_positions[0, ATOM37_INDEX["CD1"]].tolist() == [0.0, 3.0, 1.0]
    assert record.atom_positions[1, ATOM37_INDEX["O"], 0] == np.float32(5.1)
    assert record.atom_positions[1, ATOM37_INDEX["OXT"], 0] == np.float32(6.1)


def test_two_letter_chain_ids_and_four_letter_names(tmp_path: Path) -> None:
    """``HISEA`` is HISE of chain A, but HIS of chain EA if the chain has other residues too."""
    lines = residue_lines("HIS", "1", 0.0, chain="A") + residue_lines("ALA", "2", 3.8, chain="A")
    lines = [line[:20] + "E" + line[21:] for line in lines]
    (record,) = parse_and_check(write_pdb(tmp_path / "x.pdb", lines)).records
    assert (record.id, record.sequence) == ("x_EA", "HA")


def test_segment_ids_replace_blank_chain_ids(tmp_path: Path) -> None:
    lines = [
        line
        for segment in ("PROA", "PROB")
        for at in (1, 2)
        for line in residue_lines("ALA", str(at), 3.8 * at, chain=" ", segment=segment)
    ]
    parsed = parse_and_check(write_pdb(tmp_path / "x.pdb", lines))
    assert [(record.id, record.sequence) for record in parsed.records] == [("x_PROA", "AA"), ("x_PROB", "AA")]


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
        ("B", "not a protein", "its residues are 1 nucleic acid")
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
    assert parsed.excluded == [("A", "not a protein", "its residues are 3 other polymer")]
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


def test_residue_numbers_that_wrap_at_10000_are_one_chain(tmp_path: Path) -> None:
    """OpenMM and MDAnalysis count modulo 10000."""
    lines = [line for at in range(3) for line in residue_lines("ALA", str(at), 3.8 * at)]
    lines += [line for at in range(9996, 10003) for line in residue_lines("ALA", str(at % 10000), 3.8 * at % 9000)]
    (record,) = parse_and_check(write_pdb(tmp_path / "x.pdb", lines)).records
    assert record.residue_index.tolist() == [0, 1, 2, *range(9996, 10003)]


def test_struct_conn_is_ignored(tmp_path: Path) -> None:
    """OpenMM writes _struct_conn without author ids."""
    tags = [f"ptnr{at}_label_{what}_id" for at in (1, 2) for what in ("asym", "comp", "seq", "atom")]
    before = "loop_\n_struct_conn.id\n_struct_conn.conn_type_id\n"
    before += "".join(f"_struct_conn.{tag}\n" for tag in tags) + "bond1 covale A ALA 1 C A GLY 2 N\n#\n"
    rows = cif_residue("ALA", "A 1 1", 0.0) + cif_residue("GLY", "A 2 2", 3.8)
    path = write_cif(tmp_path / "x.cif", ["label_asym_id", "label_seq_id", "auth_seq_id"], rows, before)
    assert [record.sequence for record in parse_and_check(path).records] == ["AG"]
