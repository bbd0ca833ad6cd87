"""Formats of atom records: numbers, ids, residue and atom names in PDB and mmCIF files."""

from __future__ import annotations

from pathlib import Path

import gemmi
import numpy as np
import pytest

from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.data.structures.parsers import mmcif, pdb
from tests.support.structure_inputs import (
    atom_line,
    cif_residue,
    parse_and_check,
    residue_lines,
    write_cif,
    write_pdb,
)

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


def test_struct_conn_is_ignored(tmp_path: Path) -> None:
    """OpenMM writes _struct_conn without author ids."""
    tags = [f"ptnr{at}_label_{what}_id" for at in (1, 2) for what in ("asym", "comp", "seq", "atom")]
    before = "loop_\n_struct_conn.id\n_struct_conn.conn_type_id\n"
    before += "".join(f"_struct_conn.{tag}\n" for tag in tags) + "bond1 covale A ALA 1 C A GLY 2 N\n#\n"
    rows = cif_residue("ALA", "A 1 1", 0.0) + cif_residue("GLY", "A 2 2", 3.8)
    path = write_cif(tmp_path / "x.cif", ["label_asym_id", "label_seq_id", "auth_seq_id"], rows, before)
    assert [record.sequence for record in parse_and_check(path).records] == ["AG"]


def test_residue_numbers_that_wrap_at_10000_are_one_chain(tmp_path: Path) -> None:
    """OpenMM and MDAnalysis count modulo 10000."""
    lines = [line for at in range(3) for line in residue_lines("ALA", str(at), 3.8 * at)]
    lines += [line for at in range(9996, 10003) for line in residue_lines("ALA", str(at % 10000), 3.8 * at % 9000)]
    (record,) = parse_and_check(write_pdb(tmp_path / "x.pdb", lines)).records
    assert record.residue_index.tolist() == [0, 1, 2, *range(9996, 10003)]
