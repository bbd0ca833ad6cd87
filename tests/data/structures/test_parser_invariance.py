"""Changes to a file that do not change its chains do not change the parsed records."""

from __future__ import annotations

import random
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds4sci.types import Record
from tests.support.structure_inputs import ENTRIES, atom_line, parse_and_check

IDS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
SOURCES = (
    ("1ubq", "A", 0, 9),
    ("1ubq", "A", 30, 42),
    ("1kd8", "B", 3, 16),
    ("4zey", "A", 0, 30),
    ("1y57", "A", 60, 75),
)
LIGANDS = {
    "ZN": ["ZN"], "ATP": ["PG", "O1G", "N9", "C8", "C4'"], "NAG": ["C1", "C2", "N2", "O5"],
    "GLY": ["N", "CA", "C", "O"], "SO4": ["S", "O1", "O2", "O3", "O4"], "QQQ": ["C1", "N1", "CA"],
}  # fmt: skip
HYDROGENS = ("H", "HA", "HB2", "1HB", "HG21", "HD11", "D")


class Atom(NamedTuple):
    name: str
    residue: str
    number: int
    het: bool
    position: tuple[float, float, float]


@cache
def peptide(name: str, chain: str, first: int, last: int) -> list[list[Atom]]:
    """Return the residues of a part of an entry, numbered from 1 with the gaps of the entry."""
    path = next(path for path in ENTRIES if path.name.startswith(name))
    structure = gemmi.read_structure(str(path))
    structure.setup_entities()
    structure.remove_alternative_conformations()
    part = list(structure[0][chain].get_polymer())[first:last]
    start = part[0].seqid.num - 1
    return [
        [
            Atom(
                atom.name,
                one.name,
                one.seqid.num - start,
                one.het_flag == "H",
                tuple(round(x, 3) for x in atom.pos.tolist()),
            )
            for atom in one
        ]
        for one in part
    ]


def perturb(residues: list[list[Atom]], rng: random.Random) -> list[list[Atom]]:
    """Add hydrogens, shuffle the atoms of each residue, and shift the residue numbers."""
    shift = rng.randint(-200, 4000)
    made = []
    for residue in residues:
        atoms = [atom._replace(number=atom.number + shift) for atom in residue]
        for name in rng.sample(HYDROGENS, rng.randint(0, len(HYDROGENS))):
            x, y, z = atoms[0].position
            atoms.append(atoms[0]._replace(name=name, position=(x + 1.0, y, z)))
        rng.shuffle(atoms)
        made.append(atoms)
    return made


def waters_and_ligands(rng: random.Random, number: int) -> list[list[Atom]]:
    """Return waters and ligands for a protein chain or a separate chain."""
    made = []
    for at in range(rng.randint(0, 5)):
        name = rng.choice(["HOH", "HOH", "HOH", *LIGANDS])
        names = ["O"] if name == "HOH" else LIGANDS[name]
        place = [rng.uniform(80, 85) + 15 * at for _ in range(3)]  # two free glycines within 2.5 Å would be a peptide
        where = [tuple(round(x + shift, 3) for x in place) for shift in range(len(names))]
        made.append([Atom(a, name, number + 10 * at, True, at_) for a, at_ in zip(names, where, strict=True)])
    return made


def as_pdb(chains: list[tuple[str, list[list[Atom]], list[list[Atom]]]], ter: bool) -> str:
    lines, later = [], []
    for chain, residues, others in chains:
        for block, out in ((residues, lines), (others, later if ter else lines)):
            for residue in block:
                for atom in residue:
                    kind = "HETATM" if atom.het else "ATOM"
                    out.append(
                        atom_line(atom.name, atom.residue, str(atom.number), atom.position, chain=chain, kind=kind)
                    )
        if ter and residues:
            lines.append("TER")
    return "\n".join([*lines, *later, "END", ""])


def as_cif(chains: list[tuple[str, list[list[Atom]], list[list[Atom]]]], labels: bool) -> str:
    tags = ["group_PDB", "id", "label_atom_id", "label_comp_id", "auth_asym_id", "auth_seq_id"]
    tags += ["Cartn_x", "Cartn_y", "Cartn_z"]
    tags += ["label_asym_id"] if labels else []
    rows = []
    asym = 0
    for chain, residues, others in chains:
        before = None
        for residue in [*residues, *others]:
            asym += residue[0].het != before  # as in Biopython: a new label at every change between ATOM and HETATM
            before = residue[0].het
            for atom in residue:
                name = f'"{atom.name}"' if "'" in atom.name else atom.name
                place = " ".join(f"{x:.3f}" for x in atom.position)
                ids = f"{name} {atom.residue} {chain} {atom.number}"
                group = "HETATM" if atom.het else "ATOM"
                rows.append(f"{group} {len(rows)} {ids} {place}" + (f" L{asym}" if labels else ""))
    return "data_x\nloop_\n" + "\n".join(f"_atom_site.{tag}" for tag in tags) + "\n" + "\n".join(rows) + "\n"


def read(text: str, suffix: str) -> dict[str, Record]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_text(text)
        return {record.id.removeprefix("x_"): record for record in parse_and_check(path).records}


def write(chains: list[tuple[str, list[list[Atom]], list[list[Atom]]]], form: str) -> tuple[str, str]:
    if form.startswith("pdb"):
        return as_pdb(chains, form == "pdb with TER"), ".pdb"
    return as_cif(chains, form == "mmCIF with labels"), ".cif"


def check(seed: int, form: str) -> None:
    rng = random.Random(seed)
    plain = [(IDS[at], peptide(*source), []) for at, source in enumerate(rng.sample(SOURCES, rng.randint(1, 3)))]
    before = read(*write(plain, form))
    assert len(before) == len(plain)
    names = rng.sample(IDS, len(plain) + 1)
    renamed = []
    for name, (_, residues, _) in zip(names, plain, strict=False):
        made = perturb(residues, rng)
        renamed.append((name, made, waters_and_ligands(rng, made[-1][0].number + 50)))
    renamed.append((names[-1], [], waters_and_ligands(rng, 1)))
    order = list(range(len(renamed)))
    rng.shuffle(order)
    after = read(*write([renamed[at] for at in order], form))
    assert after.keys() == set(names[:-1])
    for old, new in zip(before, names, strict=False):
        one, other = before[old], after[new]
        assert one.sequence == other.sequence
        np.testing.assert_array_equal(one.residue_index, other.residue_index)
        np.testing.assert_array_equal(one.atom_mask, other.atom_mask)
        np.testing.assert_array_equal(one.atom_positions, other.atom_positions)


FORMS = ("pdb with TER", "pdb without TER", "mmCIF", "mmCIF with labels")


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_chains_are_unchanged(form: str, seed: int) -> None:
    check(seed, form)


@pytest.mark.nightly
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=5000)
@given(seed=st.integers(0, 2**32))
def test_chains_are_unchanged_many(form: str, seed: int) -> None:
    check(seed, form)
