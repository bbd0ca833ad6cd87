"""mmCIF and PDB parsers: complete entries compared with Biopython, and individual cases."""

from __future__ import annotations

import gzip
from pathlib import Path

import gemmi
import numpy as np
import pytest
from Bio.PDB import MMCIFParser

from ds4sci.chemistry.residue_constants import ATOM37, ATOM37_INDEX
from ds4sci.data.structures.parsers import mmcif, pdb
from ds4sci.types import Record
from tests.support.structure_inputs import ENTRIES as FILES
from tests.support.structure_inputs import atom_line, residue_lines, write_pdb

ENTRY = {path.name[:4]: path for path in FILES}
CAP_ATOMS = {"C", "O"}


def as_cif(path: Path, out: Path) -> Path:
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    structure.assign_label_seq_id()
    structure.make_mmcif_document().write_file(str(out))
    return out


def biopython_atoms(path: Path, chain: str) -> dict[tuple[int, str], tuple[np.ndarray, float]]:
    """Map (label_seq_id, atom) to position and B-factor, by the rules documented in ``parsers.records``."""
    with gzip.open(path, "rt") as handle:
        structure = MMCIFParser(QUIET=True, auth_residues=False).get_structure("x", handle)
    found = {}
    for residue in structure[0][chain]:
        het, number, _ = residue.id
        if het not in (" ", "H_MSE", "H_ACE"):
            continue
        atoms = [one for atom in residue for one in (atom.disordered_get_list() if atom.is_disordered() else [atom])]
        labels = sorted({atom.altloc for atom in atoms} - {" "})
        heavy = {
            label: {atom.name for atom in atoms if atom.altloc in (" ", label) and atom.element not in ("H", "D")}
            for label in labels
        }
        mean = {label: np.mean([atom.occupancy for atom in atoms if atom.altloc == label]) for label in labels}
        best = min(labels, key=lambda label: (-len(heavy[label]), -mean[label], label)) if labels else " "
        for atom in atoms:
            name = "SD" if residue.resname == "MSE" and atom.name == "SE" else atom.name
            expected = name in CAP_ATOMS if residue.resname == "ACE" else name in ATOM37
            if expected and atom.altloc in (" ", best):
                found[number, name] = (atom.coord, atom.bfactor)
        if residue.resname == "ARG" and {(number, a) for a in ("CD", "NH1", "NH2")} <= set(found):
            far1, far2 = (np.linalg.norm(found[number, a][0] - found[number, "CD"][0]) for a in ("NH1", "NH2"))
            if far2 < far1:
                found[number, "NH1"], found[number, "NH2"] = found[number, "NH2"], found[number, "NH1"]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name[:4])
def test_all_atoms_agree_with_biopython(path: Path) -> None:
    records = mmcif.read(path)
    assert records
    for record in records:
        reference = biopython_atoms(path, record.id.split("_")[1])
        parsed = {(int(r) + 1, ATOM37[a]) for r, a in np.argwhere(record.atom_mask)}
        assert parsed == set(reference)
        for (number, name), (position, b_factor) in reference.items():
            at = number - 1, ATOM37_INDEX[name]
            np.testing.assert_array_equal(record.atom_positions[at], position.astype(np.float32))
            assert record.b_factors is not None
            assert record.b_factors[at] == np.float32(b_factor)
        assert not record.atom_positions[~record.atom_mask].any()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name[:4])
def test_pdb_and_mmcif_give_the_same_records(path: Path, tmp_path: Path) -> None:
    """The entry written as PDB by gemmi: the sequence is from SEQRES and the residues are aligned to it."""
    out = tmp_path / "entry.pdb"
    gemmi.read_structure(str(path)).write_pdb(str(out))
    for one, other in zip(mmcif.read(path), pdb.read(out), strict=True):
        assert (one.id, one.sequence) == (other.id, other.sequence)
        np.testing.assert_array_equal(one.atom_mask, other.atom_mask)
        np.testing.assert_allclose(one.atom_positions, other.atom_positions, atol=0.5001e-3)  # PDB has 3 decimals


def test_missing_residues_are_masked() -> None:
    record = mmcif.read(ENTRY["2q2k"], "A")
    assert record.sequence == "MGSSHHHHHHSSGLVPGSHMDKKETKHLLKIKKEDYPQIFDFLENVPRGTKTAHIREALRRYIEEIGENP"
    assert record.residue_index.tolist() == list(range(70))
    assert np.flatnonzero(record.atom_mask[:, 1]).tolist() == list(range(22, 67))
    assert record.resolution == 3.0


def test_chain_by_author_and_by_label_id() -> None:
    path = ENTRY["2q2k"]
    by_author, by_label = mmcif.read(path, "A"), mmcif.read(path, "B", label=True)
    np.testing.assert_array_equal(by_author.atom_positions, by_label.atom_positions)
    with pytest.raises(ValueError, match=r"2q2k.*author id 'F'.*the file has A \(label B\), B \(label C\)"):
        mmcif.read(path, "F")
    with pytest.raises(ValueError, match="label id 'A'"):
        mmcif.read(path, "A", label=True)  # the DNA


def test_selenomethionine_is_methionine() -> None:
    record = mmcif.read(ENTRY["4zey"], "A")
    assert record.sequence[1] == "M"
    assert record.atom_mask[[1 + 3, 44, 64]].any()
    selenium = [at for at, letter in enumerate(record.sequence) if letter == "M" and record.atom_mask[at, 1]]
    assert record.atom_mask[selenium, ATOM37_INDEX["SD"]].all()


@pytest.mark.parametrize(
    ("name", "letter"),
    [("MSE", "M"), ("SEP", "S"), ("SEC", "C"), ("PYL", "K"), ("M3L", "K"), ("ZZ9", "X"), ("UNK", "X")],
)
def test_modified_residues_become_their_parent(name: str, letter: str, tmp_path: Path) -> None:
    """Without TER records, the chain must not end at a HETATM record inside it."""
    lines = [f"SEQRES   1 A    3  ALA {name} ALA", *residue_lines("ALA", "1", 0.0)]
    lines += residue_lines(name, "2", 3.8, kind="HETATM") + residue_lines("ALA", "3", 7.6)
    record = pdb.read(write_pdb(tmp_path / "x.pdb", lines), "A")
    assert record.sequence == f"A{letter}A"
    assert record.atom_mask[:, [0, 1, 2, 4]].all()


def test_modres_gives_the_parent_of_an_unknown_residue(tmp_path: Path) -> None:
    lines = ["MODRES 1ABC ZZ9 A    2  TRP  TOLD", "SEQRES   1 A    2  ALA ZZ9"]
    lines += residue_lines("ALA", "1", 0.0) + residue_lines("ZZ9", "2", 3.8, kind="HETATM")
    path = write_pdb(tmp_path / "x.pdb", lines)
    assert pdb.read(path, "A").sequence == "AW"
    assert mmcif.read(as_cif(path, tmp_path / "x.cif"), "A").sequence == "AW"


def test_insertion_codes(tmp_path: Path) -> None:
    numbers = ["10", "10A", "10B", "11"]
    lines = ["SEQRES   1 A    4  GLY ALA SER TRP"]
    for at, (name, number) in enumerate(zip(["GLY", "ALA", "SER", "TRP"], numbers, strict=True)):
        lines += residue_lines(name, number, 3.8 * at)
    record = pdb.read(write_pdb(tmp_path / "x.pdb", lines), "A")
    assert record.sequence == "GASW"
    np.testing.assert_allclose(record.atom_positions[:, 1, 0], [1.46, 5.26, 9.06, 12.86], atol=1e-4)
    without = pdb.read(write_pdb(tmp_path / "y.pdb", lines[1:]), "A")
    assert (without.sequence, without.residue_index.tolist()) == ("GASW", [0, 1, 2, 3])


def test_without_a_sequence_numbers_give_the_breaks(tmp_path: Path) -> None:
    lines = residue_lines("GLY", "5", 0.0) + residue_lines("ALA", "6", 3.8) + residue_lines("SER", "9", 12.0)
    record = pdb.read(write_pdb(tmp_path / "x.pdb", lines), "A")
    assert (record.id, record.sequence, record.residue_index.tolist()) == ("x_A", "GAS", [0, 1, 4])


@pytest.mark.parametrize("drop", [(), ("auth_seq_id", "auth_asym_id"), ("label_seq_id", "label_entity_id")])
def test_mmcif_with_only_atoms(drop: tuple[str, ...], tmp_path: Path) -> None:
    """A file without entities and sequence, and with missing columns, as some programs write it."""
    whole = gemmi.cif.read(str(ENTRY["2q2k"])).sole_block()
    tags = [tag.removeprefix("_atom_site.") for tag in whole.find_loop("_atom_site.id").get_loop().tags]
    tags = [tag for tag in tags if tag not in drop]
    document = gemmi.cif.Document()
    loop = document.add_new_block("x").init_loop("_atom_site.", tags)
    for row in whole.find("_atom_site.", tags):
        loop.add_row(list(row))
    document.write_file(str(tmp_path / "atoms.cif"))
    got = mmcif.read(tmp_path / "atoms.cif")
    names = "BC" if "auth_asym_id" in drop else "AB"
    assert [record.id for record in got] == [f"atoms_{name}" for name in names]
    for record, full in zip(got, mmcif.read(ENTRY["2q2k"]), strict=True):
        resolved = full.atom_mask.any(1)
        assert record.sequence == "".join(np.array(list(full.sequence))[resolved])
        np.testing.assert_array_equal(record.atom_positions, full.atom_positions[resolved])
        assert record.residue_index.tolist() == (np.flatnonzero(resolved) - np.flatnonzero(resolved)[0]).tolist()


@pytest.mark.parametrize(("first", "second", "kept"), [(0.4, 0.6, "B"), (0.6, 0.4, "A"), (0.5, 0.5, "A")])
def test_one_alternate_location_per_residue(first: float, second: float, kept: str, tmp_path: Path) -> None:
    """All atoms of a residue have the same label, also if an atom of the other has a higher occupancy."""
    lines = ["SEQRES   1 A    1  SER", *residue_lines("SER", "1", 0.0)]
    for label, occupancy, shift in (("A", first, 0.0), ("B", second, 1.0)):
        lines.append(atom_line("CB", "SER", "1", (shift, 0, 1.5), altloc=label, occupancy=occupancy))
        lines.append(atom_line("OG", "SER", "1", (shift, 0, 2.9), altloc=label, occupancy=occupancy))
    record = pdb.read(write_pdb(tmp_path / "x.pdb", lines), "A")
    x = record.atom_positions[0, [ATOM37_INDEX["CB"], ATOM37_INDEX["OG"]], 0]
    assert x.tolist() == [0.0 if kept == "A" else 1.0] * 2
    assert record.atom_mask[0].sum() == 6


def test_the_residue_of_the_sequence_is_selected_at_a_position(tmp_path: Path) -> None:
    lines = ["SEQRES   1 A    2  SER GLY"]
    lines += residue_lines("THR", "1", 50.0, altloc="B", occupancy=0.6)
    lines += residue_lines("SER", "1", 0.0, altloc="A", occupancy=0.4) + residue_lines("GLY", "2", 3.8)
    record = pdb.read(write_pdb(tmp_path / "x.pdb", lines), "A")
    assert record.sequence == "SG"
    assert record.atom_positions[0, 0, 0] == 0.0


def test_only_the_first_model_without_hydrogens_and_waters(tmp_path: Path) -> None:
    model = [*residue_lines("ALA", "1", 0.0), atom_line("H", "ALA", "1", (9, 9, 9), element="H")]
    lines = ["MODEL        1", *model, atom_line("O", "HOH", "200", (7, 7, 7), kind="HETATM"), "ENDMDL"]
    lines += ["MODEL        2", *residue_lines("ALA", "1", 30.0), "ENDMDL"]
    path = write_pdb(tmp_path / "x.pdb", lines)
    for record in (pdb.read(path, "A"), mmcif.read(as_cif(path, tmp_path / "x.cif"), "A")):
        assert record.sequence == "A"
        assert record.atom_mask[0].sum() == 4
        assert record.atom_positions[0, 0, 0] == 0.0


def test_arginine_nh1_is_closer_to_cd(tmp_path: Path) -> None:
    lines = residue_lines("ARG", "1", 0.0)
    for name, x in (("CD", 0.0), ("NH1", 4.0), ("NH2", 2.0)):
        lines.append(atom_line(name, "ARG", "1", (x, 5.0, 5.0)))
    record = pdb.read(write_pdb(tmp_path / "x.pdb", lines), "A")
    assert record.atom_positions[0, [ATOM37_INDEX["NH1"], ATOM37_INDEX["NH2"]], 0].tolist() == [2.0, 4.0]


def test_gzipped_files_give_the_same_records(tmp_path: Path) -> None:
    plain = tmp_path / "1ubq.cif"
    plain.write_bytes(gzip.decompress(FILES[2].read_bytes()))
    one, other = mmcif.read(plain, "A"), mmcif.read(FILES[2], "A")
    np.testing.assert_array_equal(one.atom_positions, other.atom_positions)
    disguised = tmp_path / "gzipped.cif"
    disguised.write_bytes(FILES[2].read_bytes())
    assert mmcif.read(disguised, "A").sequence == one.sequence


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.cif.gz", FILES[0].read_bytes()[:20000], "truncated or damaged gzip"),
        ("plain.cif.gz", b"data_x\n", "called .gz but not gzip"),
        ("text.cif", b"Dear reader, this is a letter.\n", "not mmCIF"),
        ("empty.cif", b"", "no _atom_site"),
        ("reflections.cif", b"data_x\n_refln.index_h 1\n", "no _atom_site"),
        ("cut.cif", gzip.decompress(FILES[2].read_bytes())[:-2000] + b"loop_\n_a.b\n_a.c\n1 2 3\n", "truncated"),
        ("binary.cif", bytes(range(256)), "not mmCIF"),
    ],
)
def test_invalid_mmcif_raises_with_the_file(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        mmcif.read(path)
    assert str(path) in str(caught.value)


def test_invalid_pdb_raises_with_the_file(tmp_path: Path) -> None:
    path = write_pdb(tmp_path / "x.pdb", ["REMARK nothing here"])
    with pytest.raises(ValueError, match=r"x\.pdb: no ATOM records"):
        pdb.read(path)
    path = write_pdb(tmp_path / "y.pdb", [atom_line("O", "HOH", "1", (0, 0, 0), kind="HETATM")])
    with pytest.raises(ValueError, match=r"y\.pdb: no protein chain"):
        pdb.read(path)
    with pytest.raises(ValueError, match="no label ids"):
        pdb.read(path, "A", label=True)
    with pytest.raises(FileNotFoundError):
        pdb.read(tmp_path / "absent.pdb")


def test_record_is_complete() -> None:
    record = mmcif.read(FILES[2], "A")
    assert isinstance(record, Record)
    assert record.atom_positions.dtype == np.float32
    assert record.atom_mask.dtype == bool
    assert record.residue_index.dtype == np.int32
    assert record.atom_mask.sum() == 602  # protein atoms of 1UBQ according to its publication
