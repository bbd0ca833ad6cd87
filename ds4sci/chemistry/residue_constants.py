"""Atom names, ideal geometry and symmetries of the twenty amino acids, as arrays indexed by ``aatype`` (20 = X).

The values come from ``residue_constants.json`` (AlphaFold 2, Apache-2.0) and are in Å. Atom layouts: *atom37* has one
column for each heavy-atom name; *atom14* has the residue's own atoms in its first columns. Rigid groups (supplement
1.8, Table 2): 0 backbone, 1 ω, 2 φ, 3 ψ, 4–7 χ1–4. X has only N, CA, C and O, with the geometry of alanine.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ds4sci.types import RESIDUES

ATOM37: tuple[str, ...] = (
    "N", "CA", "C", "CB", "O", "CG", "CG1", "CG2", "OG", "OG1", "SG", "CD", "CD1", "CD2", "ND1", "ND2", "OD1", "OD2",
    "SD", "CE", "CE1", "CE2", "CE3", "NE", "NE1", "NE2", "OE1", "OE2", "CH2", "NH1", "NH2", "OH", "CZ", "CZ2", "CZ3",
    "NZ", "OXT",
)  # fmt: skip
ATOM37_INDEX: dict[str, int] = {name: i for i, name in enumerate(ATOM37)}

_TABLE: dict[str, dict] = json.loads(Path(__file__).with_suffix(".json").read_text())["residues"]

RESTYPE_3TO1: dict[str, str] = {name: entry["letter"] for name, entry in _TABLE.items()}
RESTYPE_1TO3: dict[str, str] = {letter: name for name, letter in RESTYPE_3TO1.items()} | {"X": "UNK"}
ATOM14: dict[str, tuple[str, ...]] = {
    name: tuple(entry["atom14"]) + ("",) * (14 - len(entry["atom14"])) for name, entry in _TABLE.items()
} | {"UNK": ("N", "CA", "C", "O") + ("",) * 10}

VAN_DER_WAALS_RADIUS: dict[str, float] = {"C": 1.7, "N": 1.55, "O": 1.52, "S": 1.8}
"""Van der Waals radius in Å by element (Bondi)."""

BOND_C_N = ((1.329, 0.014), (1.341, 0.016))
"""Length of the peptide bond C(i)–N(i+1): (mean, standard deviation) in Å if residue i+1 is not proline, and if it
is."""
COS_CA_C_N = (-0.4473, 0.0311)
COS_C_N_CA = (-0.5203, 0.0353)
"""(Mean, standard deviation) of the cosines of the two angles at the peptide bond (Engh & Huber)."""


def encode(sequence: str) -> np.ndarray:
    """Return ``aatype`` int64 [n] of one-letter codes; other letters become 20 (X)."""
    return np.array([_LETTER.get(letter, 20) for letter in sequence], dtype=np.int64)


_LETTER = {letter: i for i, letter in enumerate(RESIDUES)}


def _frame(ex: np.ndarray, ey: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Return the 4×4 transform with x along ``ex`` and ``ey`` in the upper xy half-plane (Gram–Schmidt)."""
    x = ex / np.linalg.norm(ex)
    y = ey - ey.dot(x) * x
    y = y / np.linalg.norm(y)
    frame = np.eye(4)
    frame[:3, :3] = np.stack([x, y, np.cross(x, y)], axis=1)
    frame[:3, 3] = origin
    return frame


def _group_frames(entry: dict) -> np.ndarray:
    """Return [8, 4, 4] transforms from each group to its parent at zero torsion.

    The parent is the backbone, or the previous χ for χ2–4.
    """
    ideal = {atom: np.array(value[1:]) for atom, value in entry["ideal"].items()}
    frames = np.tile(np.eye(4), (8, 1, 1))
    frames[2] = _frame(ideal["N"] - ideal["CA"], np.array([1.0, 0.0, 0.0]), ideal["N"])
    frames[3] = _frame(ideal["C"] - ideal["CA"], ideal["CA"] - ideal["N"], ideal["C"])
    for k, atoms in enumerate(entry["chi"]):
        a, b, c = (ideal[atom] for atom in atoms[:3])
        if k == 0:
            frames[4] = _frame(c - b, a - b, c)
        else:  # the previous bond is the parent's x axis, so the third atom determines the frame
            frames[4 + k] = _frame(c, np.array([-1.0, 0.0, 0.0]), c)
    return frames


ATOM14_MASK = np.zeros((21, 14), dtype=bool)
ATOM37_MASK = np.zeros((21, 37), dtype=bool)
ATOM14_TO_37 = np.zeros((21, 14), dtype=np.int64)
ATOM37_TO_14 = np.zeros((21, 37), dtype=np.int64)
ATOM14_GROUP = np.zeros((21, 14), dtype=np.int64)
ATOM14_IDEAL = np.zeros((21, 14, 3))
ATOM14_RADIUS = np.zeros((21, 14))
ATOM14_SWAP = np.tile(np.arange(14), (21, 1))
"""Permutation of atom14 columns to the alternative names of a symmetric side chain (ASP OD1/OD2, …)."""
GROUP_FRAME = np.tile(np.eye(4), (21, 8, 1, 1))
CHI_ATOM37 = np.zeros((21, 4, 4), dtype=np.int64)
CHI_MASK = np.zeros((21, 4), dtype=bool)
CHI_PI_PERIODIC = np.zeros((21, 4), dtype=bool)
"""True for χ angles with a period of π."""
GROUP_ATOM37 = np.zeros((21, 8, 3), dtype=np.int64)
"""Three atoms that define a rigid group of a known structure: on the -x axis, at the origin, in the upper xy plane."""
GROUP_MASK = np.zeros((21, 8), dtype=bool)
"""Groups that own atoms and are defined by three atoms: backbone, ψ and the χ of the residue."""


def _fill() -> None:
    for name, columns in ATOM14.items():
        i = 20 if name == "UNK" else RESIDUES.index(RESTYPE_3TO1[name])
        entry = _TABLE["ALA" if name == "UNK" else name]
        for j, atom in enumerate(columns):
            if not atom:
                continue
            k = ATOM37_INDEX[atom]
            ATOM14_MASK[i, j] = ATOM37_MASK[i, k] = True
            ATOM14_TO_37[i, j], ATOM37_TO_14[i, k] = k, j
            ATOM14_GROUP[i, j] = entry["ideal"][atom][0]
            ATOM14_IDEAL[i, j] = entry["ideal"][atom][1:]
            ATOM14_RADIUS[i, j] = VAN_DER_WAALS_RADIUS[atom[0]]
        GROUP_FRAME[i] = _group_frames(entry)
        GROUP_ATOM37[i, 0] = [ATOM37_INDEX[atom] for atom in ("C", "CA", "N")]
        GROUP_ATOM37[i, 3] = [ATOM37_INDEX[atom] for atom in ("CA", "C", "O")]
        GROUP_MASK[i, [0, 3]] = True
        if name == "UNK":
            continue
        for a, b in entry["swaps"].items():
            ia, ib = columns.index(a), columns.index(b)
            ATOM14_SWAP[i, ia], ATOM14_SWAP[i, ib] = ib, ia
        for k, atoms in enumerate(entry["chi"]):
            CHI_ATOM37[i, k] = [ATOM37_INDEX[atom] for atom in atoms]
            GROUP_ATOM37[i, 4 + k] = CHI_ATOM37[i, k, 1:]
            CHI_MASK[i, k] = GROUP_MASK[i, 4 + k] = True
            CHI_PI_PERIODIC[i, k] = bool(entry["chi_pi_periodic"][k])


_fill()
for _constant in [value for value in globals().values() if isinstance(value, np.ndarray)]:
    _constant.setflags(write=False)
