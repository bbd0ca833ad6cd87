"""Structures written by other programs, compared atom by atom with the entry, gemmi and Biopython."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import biotite.structure.io.pdb as biotite_pdb
import biotite.structure.io.pdbx as biotite_pdbx
import gemmi
import numpy as np
import pytest
from Bio.PDB import MMCIFIO, PDBIO, MMCIFParser, PDBParser

from ds4sci.chemistry.residue_constants import ATOM37
from ds4sci.data.structures.parsers import mmcif
from ds4sci.types import Record
from tests.support.structure_inputs import ENTRIES, parse_and_check, text_of

ENTRY = {path.name[:4]: path for path in ENTRIES}
FEW = ("1ubq", "2q2k", "7l39")
MORE = ("1kd8", "4zey", "1y57")


@cache
def entry(name: str) -> gemmi.Structure:
    structure = gemmi.read_structure(str(ENTRY[name]))
    structure.setup_entities()
    return structure


@cache
def biopython_entry(name: str):
    with gzip.open(ENTRY[name], "rt") as handle:
        return MMCIFParser(QUIET=True).get_structure(name, handle)


def biotite_entry(name: str):
    file = biotite_pdbx.CIFFile.read(io.StringIO(text_of(ENTRY[name])))
    return biotite_pdbx.get_structure(file, model=1, altloc="occupancy", extra_fields=["occupancy", "b_factor"])


def lines_of(name: str, form: Callable[..., str], ter: bool) -> str:
    """Return all atoms of the entry in a program's line format, optionally with TER at the end of each polymer."""
    lines: list[str] = []
    serial = 0
    for chain in entry(name)[0]:
        polymer = {(residue.seqid.num, residue.name) for residue in chain.get_polymer()}
        ended = False
        for residue in chain:
            if ter and not ended and (residue.seqid.num, residue.name) not in polymer and polymer:
                lines.append("TER")
                ended = True
            for atom in residue:
                serial += 1
                lines.append(form(serial, chain.name, residue, atom))
    return "\n".join([*lines, "END", ""])


def padded(atom: gemmi.Atom) -> str:
    return atom.name if len(atom.name) > 3 or len(atom.element.name) > 1 else f" {atom.name}"


def mdanalysis(serial: int, chain: str, residue: gemmi.Residue, atom: gemmi.Atom) -> str:
    x, y, z = atom.pos.tolist()
    alt = atom.altloc if atom.altloc != "\0" else " "
    return (
        f"ATOM  {serial:5d} {padded(atom):<4s}{alt:<1s}{residue.name:<4s}{chain:1s}{residue.seqid.num:4d}"
        f"{residue.seqid.icode:1s}   {x:8.3f}{y:8.3f}{z:8.3f}{atom.occ:6.2f}{atom.b_iso:6.2f}      {chain:<4s}"
        f"{atom.element.name:>2s}"
    )


def openmm(serial: int, chain: str, residue: gemmi.Residue, atom: gemmi.Atom) -> str:
    """Format of OpenMM: standard residues as ATOM, others as HETATM, without alternate locations."""
    record = "HETATM" if residue.het_flag == "H" else "ATOM  "
    place = "".join(f"{value:8.3f}"[:8] for value in atom.pos.tolist())
    return (
        f"{record}{serial % 100000:5d} {padded(atom):<4s} {residue.name:>3s} {chain}{residue.seqid.num % 10000:4d}"
        f"{residue.seqid.icode}   {place}  1.00{atom.b_iso:6.2f}          {atom.element.name:>2s}  "
    )


def pymol(serial: int, chain: str, residue: gemmi.Residue, atom: gemmi.Atom) -> str:
    record = "HETATM" if residue.het_flag == "H" else "ATOM"
    x, y, z = atom.pos.tolist()
    alt = atom.altloc if atom.altloc != "\0" else ""
    return (
        f"{record:<6s}{serial:5d} {padded(atom):<4s}{alt:1s}{residue.name:<4s}{chain:1s}{residue.seqid.num:4d}"
        f"{residue.seqid.icode:1s}   {x:8.3f}{y:8.3f}{z:8.3f}{atom.occ:6.2f}{atom.b_iso:6.2f}      {'':<4s}"
        f"{atom.element.name:>2s}{'':2s}"
    )


def by_gemmi(name: str, path: Path) -> None:
    if path.suffix == ".pdb":
        entry(name).write_pdb(str(path))
    else:
        entry(name).make_mmcif_document().write_file(str(path))


def by_gemmi_atoms_only(name: str, path: Path) -> None:
    if path.suffix == ".pdb":
        options = gemmi.PdbWriteOptions(minimal=True)
        path.write_text(entry(name).make_pdb_string(options))
    else:
        groups = gemmi.MmcifOutputGroups(False, atoms=True, group_pdb=True)
        entry(name).make_mmcif_document(groups).write_file(str(path))


def by_biopython(name: str, path: Path) -> None:
    out = PDBIO() if path.suffix == ".pdb" else MMCIFIO()
    out.set_structure(biopython_entry(name))
    out.save(str(path))


def by_biotite(name: str, path: Path) -> None:
    if path.suffix == ".pdb":
        file = biotite_pdb.PDBFile()
        file.set_structure(biotite_entry(name))
    else:
        file = biotite_pdbx.CIFFile()
        biotite_pdbx.set_structure(file, biotite_entry(name))
    file.write(path)


def by_lines(form: Callable[..., str], ter: bool) -> Callable[[str, Path], None]:
    return lambda name, path: path.write_text(lines_of(name, form, ter))


WRITERS: dict[str, Callable[[str, Path], object]] = {
    "gemmi.pdb": by_gemmi,
    "gemmi.cif": by_gemmi,
    "gemmi_minimal.pdb": by_gemmi_atoms_only,
    "gemmi_minimal.cif": by_gemmi_atoms_only,
    "biopython.pdb": by_biopython,
    "biopython.cif": by_biopython,
    "biotite.pdb": by_biotite,
    "biotite.cif": by_biotite,
    "mdanalysis.pdb": by_lines(mdanalysis, False),
    "openmm.pdb": by_lines(openmm, True),
    "pymol.pdb": by_lines(pymol, False),
    "pymol_ter.pdb": by_lines(pymol, True),
}
ONE_CONFORMER = ("biotite", "openmm")
"""Programs that write one conformer. Their entries have no alternate locations of the protein."""


def atoms_by_gemmi(path: Path) -> dict[tuple[str, str], list[np.ndarray]]:
    """Map (chain, residue number with insertion code and atom name) to the positions of amino-acid atoms."""
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for chain in gemmi.read_structure(str(path))[0]:
        for residue in chain:
            if gemmi.find_tabulated_residue(residue.name).is_amino_acid():
                for atom in residue:
                    found.setdefault((chain.name, f"{residue.seqid} {atom.name}"), []).append(
                        np.array(atom.pos.tolist())
                    )
    return found


def atoms_by_biopython(path: Path) -> dict[tuple[str, str], list[np.ndarray]]:
    parser = PDBParser(QUIET=True) if path.suffix == ".pdb" else MMCIFParser(QUIET=True)
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for chain in parser.get_structure("x", str(path))[0]:
        for residue in chain:
            if gemmi.find_tabulated_residue(residue.resname).is_amino_acid():
                number = f"{residue.id[1]}{residue.id[2].strip()}"
                for atom in residue.get_unpacked_list():
                    found.setdefault((chain.id, f"{number} {atom.name}"), []).append(atom.coord)
    return found


def assert_same_atoms(record: Record, reference: dict[tuple[str, str], list[np.ndarray]]) -> None:
    """Check that every atom has its name and position in the other reading, which has no other amino-acid atoms."""
    chain = record.id.split("_")[-1]
    positions = {
        (float(x), float(y), float(z)) for x, y, z in record.atom_positions[record.atom_mask].astype(np.float64)
    }
    reference_positions = {
        tuple(np.asarray(place, np.float32).astype(np.float64).tolist()): key
        for key, several in reference.items()
        if key[0] == chain
        for place in several
    }
    caps = {
        tuple(place) for place in record.atom_positions[np.array(list(record.sequence)) == "X"].reshape(-1, 3).tolist()
    }
    assert positions - caps <= set(reference_positions)
    names = {key[1].split()[1] for place, key in reference_positions.items() if place in positions}
    assert names <= {*ATOM37, "SE"}
    lost = {key for place, key in reference_positions.items() if place not in positions}
    heavy = {key for key in lost if key[1].split()[1] in ATOM37}
    assert all(len(reference[key]) > 1 for key in heavy), heavy  # another alternate location of the atom is present


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
@pytest.mark.parametrize("writer", WRITERS)
def test_written_by_other_programs(writer: str, name: str, tmp_path: Path) -> None:
    if writer.startswith(ONE_CONFORMER) and name in ("4zey", "7l39"):
        name = "1a8q"
    path = tmp_path / f"{name.upper()}.{writer.split('.')[1]}"
    WRITERS[writer](name, path)
    records = parse_and_check(path).records
    expected = mmcif.read(ENTRY[name])
    assert [record.id.split("_")[-1] for record in records] == [record.id.split("_")[1] for record in expected]
    references = atoms_by_gemmi(path), atoms_by_biopython(path)
    for record, full in zip(records, expected, strict=True):
        there = full.atom_mask.any(1)
        rows = np.arange(len(there)) if len(record.sequence) == len(there) else np.flatnonzero(there)
        assert record.sequence == "".join(full.sequence[row] for row in rows)
        np.testing.assert_array_equal(record.atom_mask, full.atom_mask[rows])
        np.testing.assert_allclose(record.atom_positions, full.atom_positions[rows], atol=0.5001e-3)
        np.testing.assert_array_equal(np.diff(record.residue_index), np.diff(full.residue_index[rows]))
        for reference in references:
            assert_same_atoms(record, reference)
