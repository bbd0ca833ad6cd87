"""Adaptive patches of an image: a quadtree that divides where a constant patch would err most, against equal patches.

Tokens are then dense where the image has detail (Zhang et al., adaptive patch framework, arXiv 2404.09707, which
divides by the number of edges). A patch is reconstructed by its mean, so that the squared error of a patch is its
variance times its number of points, and dividing a patch never increases the error. Points may have weights, such as
their areas on the sphere: means and errors are then weighted.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quadtree:
    """Square patches that tile an image.

    corner  int64 [n, 2], first row and column of each patch
    edge    int64 [n], its length
    shape   of the image, rows and columns: multiples of the largest edge
    mse     mean squared error of the image whose patches have their means
    """

    corner: np.ndarray
    edge: np.ndarray
    shape: tuple[int, int]
    mse: float

    def __len__(self) -> int:
        return len(self.edge)

    def reconstruct(self, image: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
        """Return ``image`` with the mean of each patch in all its points."""
        out = np.empty(self.shape)
        weights = _weights(image, weight)
        for (row, column), n in zip(self.corner, self.edge, strict=True):
            place = slice(row, row + n), slice(column, column + n)
            out[place] = np.average(image[place], weights=weights[place])
        return out


def uniform_mse(image: np.ndarray, edge: int, weight: np.ndarray | None = None) -> float:
    """Return the mean squared error of equal patches of ``edge`` points, each reconstructed by its mean.

    weight  of each point, positive, of a shape that broadcasts to that of ``image``; by default all are equal
    """
    return float(_errors(image, edge, weight)[edge].sum())


def adaptive_patches(
    image: np.ndarray, *, largest: int, smallest: int, mse: float, weight: np.ndarray | None = None
) -> Quadtree:
    """Return patches of edges from ``smallest`` to ``largest`` whose mean squared error is at most ``mse``.

    Greedy: the patch whose division into four reduces the error most is divided first. ``largest`` is ``smallest``
    times a power of two and divides the shape. ``weight`` is that of ``uniform_mse``.

    Raises ValueError for other edges, and if patches of ``smallest`` have a larger error.
    """
    rows, columns = image.shape
    ratio = largest // smallest
    if smallest < 1 or largest % smallest or ratio & (ratio - 1) or rows % largest or columns % largest:
        raise ValueError(
            f"image of {rows} × {columns} points, patches of {smallest} to {largest}; expected edges that differ by "
            "powers of two and divide the image"
        )
    errors = _errors(image, largest, weight)
    least = float(errors[smallest].sum())
    if least > mse:
        raise ValueError(f"mse = {mse}: patches of {smallest} points have {least}; use smaller patches")
    total = float(errors[largest].sum())
    leaves: list[tuple[int, int, int]] = []
    queue = [_candidate(errors, largest, *map(int, place)) for place in np.ndindex(errors[largest].shape)]
    heapq.heapify(queue)
    while queue and total > mse:
        gain, edge, i, j = heapq.heappop(queue)
        total += gain  # negative
        for child in ((2 * i + a, 2 * j + b) for a in (0, 1) for b in (0, 1)):
            if edge // 2 > smallest:
                heapq.heappush(queue, _candidate(errors, edge // 2, *child))
            else:
                leaves.append((edge // 2, *child))
    leaves += [(edge, i, j) for _, edge, i, j in queue]
    found = np.array(sorted(leaves, key=lambda leaf: (leaf[0] * leaf[1], leaf[0] * leaf[2])), np.int64)
    exact = sum(float(errors[edge][i, j]) for edge, i, j in found)
    return Quadtree(found[:, 1:] * found[:, :1], found[:, 0], (rows, columns), exact)


def _candidate(errors: dict[int, np.ndarray], edge: int, i: int, j: int) -> tuple[float, int, int, int]:
    """A patch with the change of the error if it is divided."""
    children = errors[edge // 2][2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum()
    return float(children - errors[edge][i, j]), edge, i, j


def _weights(image: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Weights of all points whose sum is 1. Raises ValueError for weights that are not positive."""
    weights = np.broadcast_to(np.ones(()) if weight is None else np.asarray(weight, np.float64), image.shape)
    if not weights.min() > 0:
        raise ValueError(f"weights of points from {weights.min()}; expected positive numbers")
    return weights / weights.sum()


def _errors(image: np.ndarray, largest: int, weight: np.ndarray | None) -> dict[int, np.ndarray]:
    """Edge → weighted squared error of each patch, Σ w x² − (Σ w x)² / Σ w, where all w sum to 1.

    Edges are 1, and m, 2 m, 4 m, …, ``largest`` with odd m.
    """
    weights = _weights(image, weight)
    # without the mean of the image, the sums of squares lose no digits
    values = image.astype(np.float64) - np.average(image, weights=weights)
    sums, squares, edge, found = weights * values, weights * np.square(values), 1, {}
    odd = largest // (largest & -largest)
    while True:
        found[edge] = np.maximum(squares - np.square(sums) / weights, 0.0)
        if edge >= largest:
            return found
        factor = odd if edge == 1 and odd > 1 else 2
        shape = (sums.shape[0] // factor, factor, sums.shape[1] // factor, factor)
        weights, sums, squares = (x.reshape(shape).sum((1, 3)) for x in (weights, sums, squares))
        edge *= factor
