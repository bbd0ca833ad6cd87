"""Residue and atom names: classification of residues, and names used by molecular-dynamics programs.

Amber: HID HIE HIP CYX CYM ASH GLH LYN, and N or C before the name of a terminal residue (NMET, CGLY).
CHARMM: HSD HSE HSP LSN ASPP GLUP, CD of isoleucine, OT1 and OT2. GROMACS: HISD HISE HISH CYSH LYSH, O1 and O2.
"""

from __future__ import annotations

import re
from functools import lru_cache

import gemmi

from ds4sci.chemistry.residue_constants import RESTYPE_3TO1

_STATES = {
    "HIS": "HID HIE HIP HSD HSE HSP HISA HISB HISD HISE HISH HIS1 HIS2",
    "CYS": "CYX CYM CYS1 CYS2 CYSH",
    "ASP": "ASH ASPH ASPP",
    "GLU": "GLH GLUH GLUP",
    "LYS": "LYN LSN LYP LYSN LYSH",
    "ARG": "ARN ARGN",
    "TYR": "TYM",
}
"""Residue names of protonation states, by parent."""
_PARENT = {name: parent for parent, names in _STATES.items() for name in names.split()}
_THREE = [name for name in (*RESTYPE_3TO1, *_PARENT) if len(name) == 3]
SIMULATION_PARENT: dict[str, str] = {
    **{end + name: _PARENT.get(name, name) for end in "NC" for name in _THREE},
    **_PARENT,
}
"""Three-letter parent of each of these names."""

_EXCLUDING_ATOMS = {"HSE": {"OD"}}
"""Atoms that show that a name has its meaning in the PDB chemical component dictionary, where HSE is homoserine."""

ATOM_ALIASES: dict[str, str] = {
    "OT1": "O", "OT2": "OXT", "OCT1": "O", "OCT2": "OXT", "OC1": "O", "OC2": "OXT", "O1": "O", "O2": "OXT",
}  # fmt: skip
"""Alternative names of the C-terminal oxygens."""

_WATER = frozenset(
    {"HOH", "WAT", "DOD", "H2O", "HHO", "OHH", "OH2", "SOL", "SPC", "TIP", "TIP2", "TIP3", "TIP4", "TIP5"}
    | {"T3P", "T4P", "T5P", "TP3", "TP4", "TP5"}
)
_CAPS = frozenset(["ACE", "NME", "NMA", "NH2", "NHE", "FOR"])
_NUCLEIC = re.compile(r"[DR]?[ACGTU][53N]?|ADE|GUA|THY|CYT|URA")
_HYDROGEN = re.compile(r"[0-9]*[HD]")


@lru_cache(maxsize=4096)
def kind(name: str) -> str:
    """Return the kind of a residue name: water, amino acid, cap, nucleic acid or other."""
    if name in RESTYPE_3TO1 or name in SIMULATION_PARENT:
        return "amino acid"
    if name in _WATER:
        return "water"
    if name in _CAPS:
        return "cap"
    known = gemmi.find_tabulated_residue(name)
    if known.is_water():
        return "water"
    if known.is_amino_acid():
        return "amino acid"
    if known.is_nucleic_acid() or (not known.found() and _NUCLEIC.fullmatch(name)):
        return "nucleic acid"
    return "other"


@lru_cache(maxsize=4096)
def is_d_amino_acid(name: str) -> bool:
    return gemmi.find_tabulated_residue(name).kind == gemmi.ResidueKind.AAD


@lru_cache(maxsize=4096)
def parent_of(name: str) -> str:
    """Return the one-letter parent from gemmi's table, or a letter outside the twenty."""
    letter = gemmi.find_tabulated_residue(name).one_letter_code.upper().strip() or "X"
    return {"U": "C", "O": "K"}.get(letter, letter)


def simulation_parent(name: str, atoms: set[str]) -> str | None:
    """Return the three-letter parent of a simulation program's residue name, or None if the atoms contradict it."""
    return None if atoms & _EXCLUDING_ATOMS.get(name, set()) else SIMULATION_PARENT.get(name)


def is_hydrogen(name: str) -> bool:
    """Return whether an amino-acid atom with this name is hydrogen or deuterium. No other element matches."""
    return _HYDROGEN.match(name) is not None
