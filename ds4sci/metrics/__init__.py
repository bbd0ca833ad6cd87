"""How good a prediction is: structures against the truth and their own geometry; language models' losses by class
(``language``), effects of variants (``variants``) and contacts from attention (``contacts``).

numpy, float64, one example at a time, pure functions. Coordinates in Å; ``mask`` is True where a residue is
scored and ``None`` scores all. A score that has nothing to measure (no scored pair, fewer than three residues to
superpose, no helix) is NaN, or None where the docstring says so; it is never 0, which would read as "bad".
Prediction and truth are compared residue by residue: the alignment is the identity, as it is for a prediction.
"""

from __future__ import annotations

from ds4sci.metrics.chain import METRICS, PERCENT_METRICS, chain_metrics, mean_metrics
from ds4sci.metrics.contacts import apc, contact_map, fit_contact_regression, pair_features, precision_table
from ds4sci.metrics.geometry import bond_fraction, clash_fraction, right_handed_fraction
from ds4sci.metrics.language import LossSums, class_losses, perplexity
from ds4sci.metrics.local import contact_precision, lddt_ca, pseudo_beta
from ds4sci.metrics.superposition import (
    Superposition,
    SuperpositionMetrics,
    gdt_ts,
    rmsd,
    superpose,
    superposition_metrics,
    tm_score,
)
from ds4sci.metrics.variants import marginal_scores, mutated_positions, parse_variant, read_variants, spearman

__all__ = [
    "METRICS",
    "PERCENT_METRICS",
    "LossSums",
    "Superposition",
    "SuperpositionMetrics",
    "apc",
    "bond_fraction",
    "chain_metrics",
    "clash_fraction",
    "class_losses",
    "contact_map",
    "contact_precision",
    "fit_contact_regression",
    "gdt_ts",
    "lddt_ca",
    "marginal_scores",
    "mean_metrics",
    "mutated_positions",
    "pair_features",
    "parse_variant",
    "perplexity",
    "precision_table",
    "pseudo_beta",
    "read_variants",
    "right_handed_fraction",
    "rmsd",
    "spearman",
    "superpose",
    "superposition_metrics",
    "tm_score",
]
