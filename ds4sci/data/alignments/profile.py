"""Sequence profiles from an alignment or, for a single sequence, from BLOSUM62."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np

from ds4sci.chemistry.residue_codes import UNKNOWN, encode
from ds4sci.types import RESIDUES, Msa, Record

MsaInput = Literal["msa", "profile", "sequence"]

BACKGROUND = np.array([
    0.078, 0.051, 0.041, 0.052, 0.024, 0.034, 0.059, 0.083, 0.025, 0.062,
    0.092, 0.056, 0.024, 0.043, 0.043, 0.059, 0.055, 0.014, 0.034, 0.072,
])  # fmt: skip
"""Background frequencies p_a of BLOSUM62 in ``RESIDUES`` order (Henikoff & Henikoff 1992)."""


@cache
def _conditional() -> np.ndarray:
    """Return float64 [21, 20]: row a is P(b | a) ∝ p_b · 2^(S_ab / 2); row 20 (X) is the background."""
    from Bio.Align import substitution_matrices

    blosum = substitution_matrices.load("BLOSUM62")
    scores = np.array([[blosum[a][b] for b in RESIDUES] for a in RESIDUES])
    rows = BACKGROUND * np.exp2(scores / 2.0)  # BLOSUM62 is in half bits
    rows = np.concatenate([rows, BACKGROUND[None]])
    return rows / rows.sum(1, keepdims=True)


def sequence_profile(sequence: str) -> np.ndarray:
    """Return the BLOSUM62 profile of a single sequence, float32 [n, 20] in ``RESIDUES`` order.

    P(b | a) = p_b · 2^(S_ab / 2) / Σ_c p_c · 2^(S_ac / 2), with S the BLOSUM62 scores in half bits and p the background
    frequencies: the pseudocounts of PSI-BLAST (Altschul et al. 1997, eq. 5) with one sequence. X gives p itself.
    It replaces the profile when a model that was trained on profiles predicts from a FASTA file only.
    """
    letters = np.minimum(encode(sequence), UNKNOWN)
    return _conditional()[letters].astype(np.float32)


def msa_profile(msa: Msa) -> np.ndarray:
    """Return the amino-acid frequencies of each column, float32 [n, 20], without gaps and X.

    A column without amino acids gets the background frequencies.
    """
    counts = np.stack([(msa.sequences == letter).sum(0) for letter in range(20)], axis=1).astype(np.float64)
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), BACKGROUND / BACKGROUND.sum()).astype(np.float32)


def with_msa_input(record: Record, msa_input: MsaInput) -> Record:
    """Return ``record`` with the input that a model with this ``msa_input`` needs.

    ``"profile"``: the record's profile, else ``msa_profile``, else ``sequence_profile``. ``"msa"``: the record's
    alignment, else the sequence as its only row. Use it for prediction. Training raises an error for such records
    (``features.featurize``), because a model trained on both real and approximate profiles learns to ignore them.
    """
    if msa_input == "profile" and record.profile is None:
        made = sequence_profile(record.sequence) if record.msa is None else msa_profile(record.msa)
        return replace(record, profile=made)
    if msa_input == "msa" and record.msa is None:
        letters = encode(record.sequence)[None]
        return replace(record, msa=Msa(letters, np.zeros(letters.shape, np.int32), (record.id,)))
    return record
