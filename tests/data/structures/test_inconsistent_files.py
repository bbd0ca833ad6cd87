"""Inconsistent files, and several molecules with one chain id: no residue is misplaced or lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ds4sci.chemistry.residue_constants import RESTYPE_1TO3
from tests.support.structure_inputs import BACKBONE, chain_lines, parse_and_check, residue_lines, write_pdb

ONE = "MKTAYIAKQRQISFVKSHFSRQLEERLG"
OTHER = "GDVNWKLPEETARHYCQSIVDTLFKMGA"


CIF = """data_x
{entity}loop_
_atom_site.group_PDB
_atom_site.label_atom_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_entity_id
_atom_site.label_seq_id
_atom_site.auth_asym_id
_atom_site.auth_seq_id
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
"""


def cif_rows(sequence: str, shift: float = 0.0, first: int = 1, ids: str = "A 1", author: str = "A") -> list[str]:
    return [
        f"ATOM {atom} {RESTYPE_1TO3[letter]} {ids} {first + at} {author} {first + at}"
        f" {x + shift + 3.8 * at:.3f} {y} {z}"
        for at, letter in enumerate(sequence)
        for atom, (x, y, z) in BACKBONE.items()
    ]


def write_cif(path: Path, rows: list[str], sequence: str = "") -> Path:
    entity = "_entity.id 1\n_entity.type polymer\n_entity_poly.entity_id 1\n_entity_poly.type 'polypeptide(L)'\n"
    entity += f"_entity_poly.pdbx_seq_one_letter_code_can {sequence}\n"
    path.write_text(CIF.format(entity=entity if sequence else "") + "\n".join(rows) + "\n#\n")
    return path


def found(path: Path) -> list[tuple[str, str]]:
    return [(record.id, record.sequence) for record in parse_and_check(path).records]


@pytest.mark.parametrize(
    ("rows", "sequence"),
    [
        (cif_rows(ONE[:24], first=4), ONE),
        (cif_rows(ONE[3:]), ONE),
        (cif_rows(OTHER), ONE),
        (cif_rows(ONE), f"{ONE[:10]}SYG{ONE[11:]}"),
    ],
    ids=["shifted up", "shifted down", "of another protein", "sequence with an expanded residue"],
)
def test_label_seq_id_that_contradicts_the_sequence_is_rejected(rows: list[str], sequence: str, tmp_path: Path) -> None:
    parsed = parse_and_check(write_cif(tmp_path / "x.cif", rows, sequence))
    assert parsed.records == []
    ((chain, kind, reason),) = parsed.excluded
    assert (chain, kind) == ("A", "sequence mismatch")
    assert "differ from the entity's sequence at their label_seq_id, such as" in reason


def test_a_few_mutations_are_accepted(tmp_path: Path) -> None:
    path = write_cif(tmp_path / "x.cif", cif_rows(f"WWW{ONE[3:]}"), ONE)
    assert found(path) == [("x_A", f"WWW{ONE[3:]}")]


@pytest.mark.parametrize("chain", ["A", " "])
@pytest.mark.parametrize("end", [["TER"], []], ids=["TER", "no TER"])
@pytest.mark.parametrize(
    ("first", "second", "start"),
    [(ONE, OTHER, 1), (ONE, OTHER[:9], 1), (ONE[4:], ONE, 5), (ONE, ONE[4:], 1), (ONE, OTHER[3:], 1)],
    ids=["other protein", "peptide", "first copy is short", "second copy is short", "other part"],
)
def test_two_molecules_with_one_chain_id_are_separated(
    first: str, second: str, start: int, end: list[str], chain: str, tmp_path: Path
) -> None:
    lines = chain_lines(first, start, 0.0, chain=chain) + end + chain_lines(second, 1, 300.0, chain=chain)
    names = ["x_A", "x_A-2"] if chain.strip() else ["x", "x_-2"]
    assert found(write_pdb(tmp_path / "x.pdb", lines)) == list(zip(names, [first, second], strict=True))


def test_molecules_with_increasing_numbers_are_separated_at_the_ter(tmp_path: Path) -> None:
    lines = [*chain_lines(ONE[:10], 1, 0.0), "TER", *chain_lines(OTHER, 10, 300.0)]
    assert found(write_pdb(tmp_path / "x.pdb", lines)) == [("x_A", ONE[:10]), ("x_A-2", OTHER)]


def test_repeated_numbers_without_insertion_codes_are_one_chain(tmp_path: Path) -> None:
    lines = chain_lines(ONE[:10], 1, 0.0) + chain_lines(ONE[10:20], 10, 34.0 + 4.0)
    assert found(write_pdb(tmp_path / "x.pdb", lines)) == [("x_A", ONE[:20])]


@pytest.mark.parametrize(
    ("first", "second", "start"),
    [
        (ONE, OTHER, (1, 1)),
        (ONE, ONE, (1, 1)),
        (ONE[4:], ONE, (5, 1)),
        (ONE, OTHER[:9], (1, 1)),
    ],
    ids=["heterodimer", "homodimer", "first copy is short", "peptide"],
)
@pytest.mark.parametrize("labels", ["AB", ".."], ids=["labels", "no labels"])
def test_two_molecules_with_one_author_id_without_an_entity(
    first: str, second: str, start: tuple[int, int], labels: str, tmp_path: Path
) -> None:
    rows = cif_rows(first, first=start[0], ids=f"{labels[0]} .")
    rows += cif_rows(second, 300.0, first=start[1], ids=f"{labels[1]} .")
    assert found(write_cif(tmp_path / "x.cif", rows)) == [("x_A", first), ("x_A-2", second)]


def test_labels_separate_molecules_with_increasing_numbers(tmp_path: Path) -> None:
    rows = cif_rows(ONE, ids="A .") + cif_rows(OTHER, 300.0, first=len(ONE), ids="B .")
    assert found(write_cif(tmp_path / "x.cif", rows)) == [("x_A", ONE), ("x_A-2", OTHER)]


def test_residues_without_numbers_are_one_excluded_chain(tmp_path: Path) -> None:
    rows = [row.replace(" 1 A 1 ", " . A . ") for at in range(3) for row in cif_rows("A", 4.0 * at)]
    (excluded,) = parse_and_check(write_cif(tmp_path / "x.cif", rows)).excluded
    assert excluded.reason == "residues without numbers (auth_seq_id or label_seq_id)"


def test_records_in_any_order_are_sorted_along_the_chain(tmp_path: Path) -> None:
    lines, rows = chain_lines(ONE, 5, 0.0), cif_rows(ONE, ids="A .")
    random.Random(1).shuffle(lines)
    random.Random(1).shuffle(rows)
    assert found(write_pdb(tmp_path / "x.pdb", lines)) == [("x_A", ONE)]
    assert found(write_cif(tmp_path / "x.cif", rows)) == [("x_A", ONE)]


def test_bonds_take_precedence_over_numbers(tmp_path: Path) -> None:
    """A circular permutant keeps the numbers of its parent; the file order follows the chain."""
    numbers = [*range(15, 29), *range(1, 15)]
    lines = [
        line
        for at, (letter, number) in enumerate(zip(ONE, numbers, strict=True))
        for line in residue_lines(RESTYPE_1TO3[letter], str(number), 3.8 * at)
    ]
    assert found(write_pdb(tmp_path / "x.pdb", lines)) == [("x_A", ONE)]


def test_a_chain_only_in_a_later_model_is_excluded(tmp_path: Path) -> None:
    lines = ["MODEL        1", *chain_lines(ONE, 1, 0.0), "ENDMDL", "MODEL        2", *chain_lines(ONE, 1, 0.0)]
    path = write_pdb(tmp_path / "x.pdb", [*lines, *chain_lines(OTHER, 1, 300.0, chain="B"), "ENDMDL"])
    reason = [("B", "other model", "it has atoms only in models after the first")]
    parsed = parse_and_check(path)
    assert [record.id for record in parsed.records] == ["x_A"]
    assert parsed.excluded == reason
    rows = [f"{row} 1" for row in cif_rows(ONE)]
    rows += [f"{row} 2" for row in [*cif_rows(ONE), *cif_rows(OTHER, 300.0, ids="B 2", author="B")]]
    path = write_cif(tmp_path / "x.cif", rows)
    path.write_text(
        path.read_text().replace("_atom_site.Cartn_z\n", "_atom_site.Cartn_z\n_atom_site.pdbx_PDB_model_num\n")
    )
    assert parse_and_check(path).excluded == reason
