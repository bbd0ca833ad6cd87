"""Metrics without superposition: lDDT and contact precision."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ds4sci.metrics.superposition import paired_points

LDDT_THRESHOLDS = (0.5, 1.0, 2.0, 4.0)
"""Å, Mariani et al. 2013."""

CONTACT_CUTOFF = 8.0
"""Å between Cβ atoms, as in CASP."""

_N, _CA, _C, _CB = 0, 1, 2, 3  # indices in ds4sci.chemistry.residue_constants.ATOM37


def _distances(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


def lddt_ca(
    pred: np.ndarray,
    true: np.ndarray,
    mask: np.ndarray | None = None,
    cutoff: float = 15.0,
    per_residue: bool = False,
) -> float | np.ndarray:
    """Local distance difference test on Cα atoms, 0–1 (Mariani et al. 2013).

    lDDT = mean over pairs i ≠ j with d_true ≤ ``cutoff`` Å of ¼ Σ_t [|d_pred − d_true| ≤ t], t = 0.5, 1, 2, 4 Å. Mirror
    images have the same lDDT, so use it together with the TM-score.

    pred, true [n, 3] Å; mask bool [n]. Returns the mean over all pairs (NaN if there is none); with ``per_residue`` the
    mean over each residue's pairs, float64 [n], NaN for residues that are masked or have no pair. Memory grows as n².
    """
    scored_pred, scored_true = paired_points(pred, true, mask)
    true_distance = _distances(scored_true)
    pairs = (true_distance <= cutoff) & ~np.eye(len(scored_true), dtype=bool)
    error = np.abs(_distances(scored_pred) - true_distance)
    preserved = np.zeros_like(error)
    for threshold in LDDT_THRESHOLDS:
        preserved += error <= threshold
    preserved *= pairs / len(LDDT_THRESHOLDS)
    if not per_residue:
        count = int(pairs.sum())
        return float(preserved.sum() / count) if count else float("nan")
    values = np.full(len(np.asarray(pred)), np.nan)
    counts = pairs.sum(axis=1)
    scored = np.full(len(counts), np.nan)
    np.divide(preserved.sum(axis=1), counts, out=scored, where=counts > 0)
    values[np.ones(len(values), dtype=bool) if mask is None else np.asarray(mask)] = scored
    return values


def pseudo_beta(atom37: np.ndarray, mask: np.ndarray, sequence: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One side-chain point per residue: Cβ; Cα for glycine; an ideal Cβ from N, Cα and C if Cβ is missing.

    The ideal Cβ is −0.58273431 a + 0.56802827 b − 0.54067466 c + Cα with b = Cα − N, c = C − Cα, a = b × c (trRosetta,
    Yang et al. 2020).

    atom37 [n, 37, 3] Å, mask bool [n, 37]; ``sequence`` identifies glycines (without it every residue gets a Cβ).
    Returns points [n, 3] Å and bool [n], True = point present.
    """
    atom37, mask = np.asarray(atom37, dtype=np.float64), np.asarray(mask, dtype=bool)
    n_to_ca = atom37[:, _CA] - atom37[:, _N]
    ca_to_c = atom37[:, _C] - atom37[:, _CA]
    normal = np.cross(n_to_ca, ca_to_c)
    ideal = -0.58273431 * normal + 0.56802827 * n_to_ca - 0.54067466 * ca_to_c + atom37[:, _CA]
    has_beta = mask[:, _CB]
    points = np.where(has_beta[:, None], atom37[:, _CB], ideal)
    present = has_beta | mask[:, [_N, _CA, _C]].all(axis=1)
    if sequence is not None:
        glycine = np.array([letter == "G" for letter in sequence], dtype=bool)
        points = np.where(glycine[:, None], atom37[:, _CA], points)
        present = np.where(glycine, mask[:, _CA], present)
    return np.where(present[:, None], points, 0.0), present


def contact_precision(
    probability: np.ndarray,
    true_cb: np.ndarray,
    mask: np.ndarray | None = None,
    top: Literal["L", "L/2", "L/5"] = "L",
    min_separation: int = 6,
    residue_index: np.ndarray | None = None,
) -> float:
    """Contact precision: fraction of true contacts (Cβ–Cβ < 8 Å) among the L, L/2 or L/5 most probable pairs (CASP),
    0–1.

    probability     [n, n], any values that rank pairs; the mean of both triangles is used
    true_cb         [n, 3] Å, see ``pseudo_beta``
    mask            bool [n], True = the residue is evaluated; L is their number
    min_separation  smallest |i − j| of a pair in ``residue_index``
    residue_index   int [n]; by default 0, 1, 2, …

    Of equally probable pairs the first in the sequence comes first. If there are fewer pairs than L, all are used. NaN
    without any pair.
    """
    true_cb = np.asarray(true_cb, dtype=np.float64)
    row, column = top_pairs(probability, len(true_cb), mask, top, min_separation, residue_index)
    if not len(row):
        return float("nan")
    distance = np.linalg.norm(true_cb[row] - true_cb[column], axis=1)
    return float((distance < CONTACT_CUTOFF).mean())


def top_pairs(
    probability: np.ndarray,
    n: int,
    mask: np.ndarray | None = None,
    top: str = "L",
    min_separation: int = 6,
    residue_index: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (row < column) of the pairs that ``contact_precision`` evaluates, most probable first."""
    probability = np.asarray(probability, dtype=np.float64)
    if probability.shape != (n, n):
        raise ValueError(f"Expected probabilities of shape [{n}, {n}] for {n} residues; got {probability.shape}.")
    parts = {"L": 1, "L/2": 2, "L/5": 5}
    if top not in parts:
        raise ValueError(f"Expected top to be one of {', '.join(parts)}; got {top!r}.")
    scored = np.ones(n, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    index = np.arange(n) if residue_index is None else np.asarray(residue_index)
    row, column = np.triu_indices(n, k=1)
    keep = scored[row] & scored[column] & (index[column] - index[row] >= min_separation)
    row, column = row[keep], column[keep]
    count = min(max(int(scored.sum()) // parts[top], 1), len(row))
    symmetric = (probability[row, column] + probability[column, row]) / 2
    best = np.argsort(-symmetric, kind="stable")[:count]
    return row[best], column[best]
