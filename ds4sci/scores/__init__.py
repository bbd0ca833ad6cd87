"""How good a predicted structure is: scores against the truth, and checks of its own geometry.

numpy, float64, one structure at a time, pure functions. Coordinates in Å; ``mask`` is True where a residue is
scored and ``None`` scores all. A score that has nothing to measure (no scored pair, fewer than three residues to
superpose, no helix) is NaN, or None where the docstring says so; it is never 0, which would read as "bad".
Prediction and truth are compared residue by residue: the alignment is the identity, as it is for a prediction.
"""

from __future__ import annotations

from ds4sci.scores.chain import METRICS, mean_scores, score_chain
from ds4sci.scores.geometry import bond_fraction, clash_fraction, right_handed_fraction
from ds4sci.scores.local import contact_precision, lddt_ca, pseudo_beta
from ds4sci.scores.superposition import (
    Superposition,
    SuperpositionScores,
    gdt_ts,
    rmsd,
    superpose,
    superposition_scores,
    tm_score,
)

__all__ = [
    "METRICS",
    "Superposition",
    "SuperpositionScores",
    "bond_fraction",
    "clash_fraction",
    "contact_precision",
    "gdt_ts",
    "lddt_ca",
    "mean_scores",
    "pseudo_beta",
    "right_handed_fraction",
    "rmsd",
    "score_chain",
    "superpose",
    "superposition_scores",
    "tm_score",
]
