"""Contact prediction from language-model attention: APC, logistic regression over heads, precision by separation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ds4sci.metrics.local import CONTACT_CUTOFF, top_pairs

ESM_C = 0.15
"""Inverse strength of ESM's L1 penalty (Rao et al. 2021: 20 training proteins, separation ≥ 6)."""

TOPS, SEPARATIONS = ("L", "L/2", "L/5"), (6, 12, 24)


def apc(maps: np.ndarray) -> np.ndarray:
    """Average product correction of maps [..., n, n], float64: S − (Σ_j S_ij)(Σ_i S_ij) / Σ_ij S_ij with S = M + Mᵀ.

    Subtracts the part of each pair that the propensities of its two positions explain (Dunn et al. 2008). Returns zeros
    for a map of zeros. Raises ValueError for maps that are not square.
    """
    maps = np.asarray(maps, np.float64)
    if maps.ndim < 2 or maps.shape[-1] != maps.shape[-2]:
        raise ValueError(f"expected square maps [..., n, n]; got {list(maps.shape)}")
    both = maps + np.swapaxes(maps, -1, -2)
    row, column = both.sum(axis=-1, keepdims=True), both.sum(axis=-2, keepdims=True)
    total = both.sum(axis=(-1, -2), keepdims=True)
    return both - np.divide(row * column, total, out=np.zeros_like(both), where=total != 0)


def contact_map(points: np.ndarray, present: np.ndarray | None = None) -> np.ndarray:
    """Contacts bool [n, n] of points [n, 3] Å (see ``pseudo_beta``): distance < 8 Å (CASP), both points present."""
    points = np.asarray(points, np.float64)
    near = np.linalg.norm(points[:, None] - points[None], axis=-1) < CONTACT_CUTOFF
    if present is None:
        return near
    present = np.asarray(present, bool)
    return near & present[:, None] & present[None]


def precision_table(
    scores: np.ndarray,
    contacts: np.ndarray,
    present: np.ndarray | None = None,
    residue_index: np.ndarray | None = None,
) -> dict[str, float]:
    """Contact precision P@L, P@L/2 and P@L/5 of pairs with separation ≥ 6, 12 and 24: ``{"P@L, ≥ 6": …}``, each 0–1.

    P@k is the fraction of contacts among the k pairs with the highest score (CASP); L is the number of residues.
    NaN if there is no pair.

    scores    [n, n], higher = more likely
    contacts  bool [n, n], or distances in Å, of which < 8 Å is a contact and NaN is none
    present   bool [n], True = the residue is evaluated and counts towards L

    Ties are broken as in ``contact_precision``. Raises ValueError for contacts that are not square.
    """
    contacts = np.asarray(contacts)
    touching = contacts if contacts.dtype == bool else contacts < CONTACT_CUTOFF
    if touching.ndim != 2 or touching.shape[0] != touching.shape[1]:
        raise ValueError(f"expected contacts or distances [n, n]; got {list(touching.shape)}")
    table = {}
    for separation in SEPARATIONS:
        for top in TOPS:
            row, column = top_pairs(scores, len(touching), present, top, separation, residue_index)
            hits = touching[row, column]
            table[f"P@{top}, ≥ {separation}"] = float(hits.mean()) if len(hits) else float("nan")
    return table


def pair_features(
    maps: np.ndarray, contacts: np.ndarray, present: np.ndarray | None = None, min_separation: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Training pairs of one protein for ``fit_contact_regression``: features float64 [pairs, heads], labels bool
    [pairs].

    maps [heads, n, n] is the attention of all heads and layers, without special tokens; APC is applied here. Pairs are
    i < j with j − i ≥ ``min_separation``, both residues present.
    """
    corrected = apc(maps)
    row, column = np.triu_indices(corrected.shape[-1], k=min_separation)
    if present is not None:
        both = np.asarray(present, bool)[row] & np.asarray(present, bool)[column]
        row, column = row[both], column[both]
    return corrected[:, row, column].T, np.asarray(contacts, bool)[row, column]


@dataclass(frozen=True)
class ContactRegression:
    """Logistic regression over the APC-corrected maps of all heads: weight float64 [heads], bias."""

    weight: np.ndarray
    bias: float

    def __call__(self, maps: np.ndarray) -> np.ndarray:
        """Contact probability float64 [n, n], symmetric, of maps [heads, n, n]: σ(Σ_h w_h APC(M_h) + b)."""
        logits = np.tensordot(self.weight, apc(maps), axes=1) + self.bias
        return _sigmoid(logits)


def fit_contact_regression(examples: Sequence[tuple[np.ndarray, np.ndarray]], *, c: float = ESM_C) -> ContactRegression:
    """Fit ``ContactRegression`` on the pairs of several proteins (``pair_features`` of each; Rao et al. 2021).

    Minimizes ‖w‖₁ + c Σ log(1 + exp(−y (w·x + b))), y = ±1, as ESM does. The bias is not penalized; liblinear, which
    ESM uses through scikit-learn, penalizes it too. Raises ValueError if all pairs, or none, are contacts.
    """
    features = np.concatenate([x for x, _ in examples])
    labels = np.concatenate([y for _, y in examples]).astype(bool)
    if labels.all() or not labels.any():
        raise ValueError(
            f"{len(labels)} pairs, {int(labels.sum())} of them contacts: the regression needs pairs of both classes"
        )
    weight, bias = l1_logistic_regression(features, labels, c)
    return ContactRegression(weight, bias)


def l1_logistic_regression(
    x: np.ndarray, y: np.ndarray, c: float, *, tolerance: float = 1e-6, steps: int = 100
) -> tuple[np.ndarray, float]:
    """Weight [p] and bias that minimize ‖w‖₁ + c Σ log(1 + exp(−y (x w + b))); x [pairs, p], y bool [pairs].

    Proximal Newton (Lee, Sun & Saunders 2014): coordinate descent minimizes the second-order model of the loss plus the
    penalty, then backtracking halves the step until the objective decreases sufficiently. Converged when no coordinate
    violates the optimality conditions by more than ``tolerance`` times the penalty. Raises ValueError if this takes
    more than ``steps`` steps.
    """
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    sign = np.where(y, 1.0, -1.0)
    penalty = np.append(np.ones(x.shape[1]), 0.0)

    def objective(w: np.ndarray) -> float:
        return float(penalty @ np.abs(w) + c * np.logaddexp(0, -sign * (design @ w)).sum())

    # Start at the best model with a bias only: far from it the logistic function is flat and Newton steps overshoot.
    positive = y.mean()
    w = np.append(np.zeros(x.shape[1]), np.log(positive / (1 - positive)))
    value = objective(w)
    for _ in range(steps):
        p = _sigmoid(design @ w)
        gradient = c * design.T @ (p - y)
        free = np.abs(gradient + np.sign(w) * penalty)
        worst = np.where(w != 0, free, np.maximum(np.abs(gradient) - penalty, 0)).max()
        if worst <= tolerance:
            return w[:-1], float(w[-1])
        hessian = c * (design.T * (p * (1 - p))) @ design
        step = _quadratic_l1(hessian, gradient, w, penalty) - w
        descent = float(gradient @ step + penalty @ (np.abs(w + step) - np.abs(w)))
        size = 1.0
        while objective(w + size * step) > value + 1e-4 * size * descent and size > 1e-10:
            size /= 2
        w = w + size * step
        value = objective(w)
    raise ValueError(
        f"l1_logistic_regression: no convergence in {steps} steps (optimality conditions violated by {worst:.1e});"
        " features of very different scale, or equal features? Scale them, or increase steps"
    )


def _quadratic_l1(
    hessian: np.ndarray, gradient: np.ndarray, w: np.ndarray, penalty: np.ndarray, sweeps: int = 500
) -> np.ndarray:
    """Minimizer v of gradient·(v − w) + (v − w)ᵀ H (v − w) / 2 + penalty·|v|, by coordinate descent."""
    v = w.copy()
    slope = gradient.copy()  # gradient + H (v − w), updated with v
    curvature = np.maximum(np.diagonal(hessian), 1e-12)
    for _ in range(sweeps):
        largest = 0.0
        for j in range(len(v)):
            free = v[j] - slope[j] / curvature[j]
            new = np.sign(free) * max(abs(free) - penalty[j] / curvature[j], 0.0)
            if new != v[j]:
                change = new - v[j]
                slope += hessian[j] * change
                v[j] = new
                largest = max(largest, abs(change) * curvature[j])
        if largest < 1e-9:
            break
    return v


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(logits / 2))  # does not overflow
