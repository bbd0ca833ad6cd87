"""Metrics of predictions: structures against the true structure (``local``, ``superposition``) and by their own
geometry (``geometry``); language-model losses by class (``language``), variant effects (``variants``) and contacts from
attention (``contacts``).

Pure numpy functions in float64 of one example. Coordinates are in Å. ``mask`` is True for residues that are evaluated;
``None`` evaluates all. A metric that is undefined (no pair to evaluate, fewer than three residues to superpose, no
helix) is NaN, or None where the docstring states it. It is never 0, which would count as a bad value. Prediction and
true structure have the same residues, so no alignment is computed.
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
