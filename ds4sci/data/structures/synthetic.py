"""Synthetic chains with the shapes of real ones, for benchmarks and for plans of a run."""

from __future__ import annotations

import numpy as np

from ds4sci.chemistry.residue_constants import ATOM37_MASK
from ds4sci.types import RESIDUES, Msa, Record

CA_DISTANCE = 3.8
"""Distance between neighbouring Cα atoms, in Å."""


def synthetic_chain(length: int, rows: int, rng: np.random.Generator, *, side_chains: bool = False) -> Record:
    """Random chain of ``length`` residues: complete backbone, a profile, and an alignment of ``rows`` rows.

    Its shapes are those of a real chain, so a step on it costs the same. With ``side_chains`` all atoms of each residue
    are present; those of side chains are at its Cα.
    """
    letters = rng.integers(0, 20, length)
    alignment = np.where(rng.random((rows, length)) < 0.5, letters, rng.integers(0, 22, (rows, length)))
    alignment[0] = letters
    steps = rng.normal(size=(length, 3))
    trace = np.cumsum(CA_DISTANCE * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    positions = np.zeros((length, 37, 3), np.float32)
    mask = np.zeros((length, 37), bool)
    if side_chains:
        positions[:], mask = trace[:, None], ATOM37_MASK[letters]
    for atom, offset in ((0, (-1.4, 0.3, 0)), (1, (0, 0, 0)), (2, (1.5, 0, 0.2)), (4, (1.9, 1.0, 0.4))):
        positions[:, atom], mask[:, atom] = trace + np.array(offset), True
    return Record(
        id=f"synthetic_{length}",
        sequence="".join(RESIDUES[i] for i in letters),
        atom_positions=positions,
        atom_mask=mask,
        residue_index=np.arange(length, dtype=np.int32),
        dssp="C" * length,
        profile=np.eye(20, dtype=np.float32)[letters],
        msa=Msa(alignment.astype(np.uint8), np.zeros((rows, length), np.int32), tuple(map(str, range(rows)))),
    )
