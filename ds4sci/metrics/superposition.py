"""Metrics after superposition: RMSD, TM-score, GDT."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_REFITS = 20
"""Largest number of refits of one seed, as in the TM-score program."""

GDT_CUTOFFS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Å. GDT-TS is the mean over 1, 2, 4, 8; GDT-HA over 0.5, 1, 2, 4."""


@dataclass(frozen=True)
class Superposition:
    """Rigid motion x → R x + t that superposes one structure on another.

    rotation     float64 [3, 3], a proper rotation (determinant +1), never a reflection
    translation  float64 [3], Å
    """

    rotation: np.ndarray
    translation: np.ndarray

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Move ``points`` [..., 3]."""
        return np.asarray(points, dtype=np.float64) @ self.rotation.T + self.translation


@dataclass(frozen=True)
class SuperpositionMetrics:
    """TM-score, GDT-TS and GDT-HA, each 0–1, and the superposition with the best TM-score."""

    tm_score: float
    gdt_ts: float
    gdt_ha: float
    superposition: Superposition


def paired_points(pred: np.ndarray, true: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The evaluated rows of two [n, 3] arrays as float64. Raises ValueError for wrong shapes and values not finite."""
    pred, true = np.asarray(pred, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if pred.ndim != 2 or pred.shape[1] != 3 or pred.shape != true.shape:
        raise ValueError(
            f"Expected two arrays of shape [residues, 3]; got prediction {pred.shape} and true structure "
            f"{true.shape}. Compare one structure at a time, with the same residues in both."
        )
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != (len(pred),):
            raise ValueError(f"Expected a bool mask of shape [{len(pred)}]; got {mask.dtype} {mask.shape}.")
        pred, true = pred[mask], true[mask]
    for name, points in (("predicted", pred), ("true", true)):
        bad = int((~np.isfinite(points)).any(axis=1).sum())
        if bad:
            raise ValueError(f"{bad} of {len(points)} {name} positions are not finite; mask them, or fix the model.")
    return pred, true


def weighted_kabsch(weights: np.ndarray, pred: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """k weighted least-squares superpositions of ``pred`` on ``true`` (Kabsch 1976).

    weights [k, n] (at least one positive in each row); pred, true [n, 3].
    Returns rotations [k, 3, 3] and translations [k, 3]. Memory grows as k·n.
    """
    weights = weights / weights.sum(axis=1, keepdims=True)
    centre_pred, centre_true = weights @ pred, weights @ true
    products = (pred[:, :, None] * true[:, None, :]).reshape(len(pred), 9)
    covariance = (weights @ products).reshape(-1, 3, 3) - centre_pred[:, :, None] * centre_true[:, None, :]
    u, _, vt = np.linalg.svd(covariance)
    # The last axis is inverted if the best orthogonal map is a reflection.
    u[:, :, 2] *= np.sign(np.linalg.det(u) * np.linalg.det(vt))[:, None]
    rotation = (u @ vt).transpose(0, 2, 1)
    return rotation, centre_true - np.einsum("kij,kj->ki", rotation, centre_pred)


def superpose(pred: np.ndarray, true: np.ndarray, mask: np.ndarray | None = None) -> Superposition:
    """Rigid motion of ``pred`` [n, 3] Å onto ``true`` [n, 3] Å with the smallest RMSD over the evaluated residues.

    Raises ValueError if no residue is evaluated, shapes differ, or a coordinate is not finite.
    """
    pred, true = paired_points(pred, true, mask)
    if not len(pred):
        raise ValueError("Nothing to superpose: no residue is evaluated.")
    # Centering first avoids cancellation for structures far from the origin.
    shift_pred, shift_true = pred.mean(axis=0), true.mean(axis=0)
    rotation, translation = weighted_kabsch(np.ones((1, len(pred))), pred - shift_pred, true - shift_true)
    return Superposition(rotation[0], translation[0] + shift_true - rotation[0] @ shift_pred)


def rmsd(pred: np.ndarray, true: np.ndarray, mask: np.ndarray | None = None) -> float:
    """RMSD √(mean |R x + t − y|²) in Å after optimal superposition (Kabsch 1976); NaN for fewer than three residues."""
    scored_pred, scored_true = paired_points(pred, true, mask)
    if len(scored_pred) < 3:
        return float("nan")
    moved = superpose(scored_pred, scored_true).apply(scored_pred)
    return float(np.sqrt(((moved - scored_true) ** 2).sum(axis=1).mean()))


def tm_d0(length: int) -> float:
    """TM-score scale d₀ = 1.24 ∛(L − 15) − 1.8 Å, at least 0.5 Å (reached for L ≤ 21), as in the TM-score program."""
    return max(1.24 * float(np.cbrt(length - 15)) - 1.8, 0.5)


def _seeds(length: int) -> np.ndarray:
    """Seeds of the search, bool [k, L]: contiguous fragments of L, L/2, L/4, …, 4 residues at every start."""
    sizes = sorted({max(length >> power, min(4, length)) for power in range(6)}, reverse=True)
    position = np.arange(length)
    return np.concatenate(
        [
            (position >= start[:, None]) & (position < start[:, None] + size)
            for size in sizes
            for start in [np.arange(length - size + 1)]
        ]
    )


def _unvisited(selected: np.ndarray, visited: set[bytes]) -> np.ndarray:
    """The distinct rows of ``selected`` that are not in ``visited``; adds them to it."""
    new_rows = []
    for row, key in enumerate(map(bytes, np.packbits(selected, axis=1))):
        if key not in visited:
            visited.add(key)
            new_rows.append(row)
    return selected[new_rows]


def superposition_metrics(
    pred: np.ndarray, true: np.ndarray, mask: np.ndarray | None = None
) -> SuperpositionMetrics | None:
    """TM-score and GDT by the search of the TM-score program (Zhang & Skolnick 2004), for all seeds at once.

    TM = max over rigid motions of (1/L) Σᵢ 1 / (1 + (dᵢ/d₀)²), where L is the number of evaluated residues. Seeds are
    all fragments of L, L/2, L/4, …, 4 residues. Each is superposed, then refitted on the residues within d₀ (between
    4.5 and 8 Å) − 1 Å, then + 1 Å, until this set repeats, at most 20 times. GDT counts are the maxima over all
    superpositions of the search, as in that program. The result is a lower bound of the true maximum.

    None for fewer than three residues. Memory grows as 5 L² floats, time about as L² log L.
    """
    pred, true = paired_points(pred, true, mask)
    length = len(pred)
    if length < 3:
        return None
    shift_pred, shift_true = pred.mean(axis=0), true.mean(axis=0)
    pred, true = pred - shift_pred, true - shift_true
    d0 = tm_d0(length)
    search = min(max(d0, 4.5), 8.0)
    best, best_rotation, best_translation = -1.0, np.eye(3), np.zeros(3)
    counts = np.zeros(len(GDT_CUTOFFS), dtype=np.int64)
    selected, visited = _seeds(length), set[bytes]()
    for refit in range(MAX_REFITS + 1):
        rotation, translation = weighted_kabsch(selected.astype(np.float64), pred, true)
        moved = (pred @ rotation.transpose(0, 2, 1)) + translation[:, None, :]
        moved -= true
        squared = np.einsum("kni,kni->kn", moved, moved)
        tm = (1.0 / (1.0 + squared / d0**2)).mean(axis=1)
        top = int(tm.argmax())
        if tm[top] > best:
            best, best_rotation, best_translation = float(tm[top]), rotation[top], translation[top]
        for index, cutoff in enumerate(GDT_CUTOFFS):
            counts[index] = max(counts[index], (squared <= cutoff**2).sum(axis=1).max())
        # A fit needs three points: the cutoff grows to the third nearest residue if fewer are within it.
        third = np.partition(squared, 2, axis=1)[:, 2:3]
        cutoff = search - 1.0 if refit == 0 else search + 1.0
        selected = _unvisited(squared <= np.maximum(cutoff**2, third), visited)
        if not len(selected):
            break
    fraction = counts / length
    return SuperpositionMetrics(
        tm_score=best,
        gdt_ts=float(fraction[1:5].mean()),
        gdt_ha=float(fraction[0:4].mean()),
        superposition=Superposition(best_rotation, best_translation + shift_true - best_rotation @ shift_pred),
    )


def tm_score(pred: np.ndarray, true: np.ndarray, mask: np.ndarray | None = None) -> float:
    """TM-score, 0–1 (Zhang & Skolnick 2004; see ``superposition_metrics``). NaN for fewer than three residues."""
    metrics = superposition_metrics(pred, true, mask)
    return float("nan") if metrics is None else metrics.tm_score


def gdt_ts(pred: np.ndarray, true: np.ndarray, mask: np.ndarray | None = None) -> float:
    """GDT-TS, 0–1 (Zemla 2003): mean over 1, 2, 4, 8 Å of the largest fraction of residues within that distance.

    The maximum is over the superpositions of ``superposition_metrics``. NaN for fewer than three residues.
    """
    metrics = superposition_metrics(pred, true, mask)
    return float("nan") if metrics is None else metrics.gdt_ts
