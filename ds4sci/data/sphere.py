"""Fields on a regular grid of latitudes, poles included, and longitudes: vorticity, coarsening and interpolation.

Fields are [..., latitude, longitude]. Latitudes run from −90° to 90°, longitudes around the whole circle, both evenly.
"""

from __future__ import annotations

import numpy as np

EARTH_RADIUS = 6.371e6
"""Mean radius of the Earth, m."""


def latitudes(rows: int) -> np.ndarray:
    """Latitudes of ``rows`` rows from pole to pole, radians."""
    return np.linspace(-np.pi / 2, np.pi / 2, rows)


def relative_vorticity(u: np.ndarray, v: np.ndarray, radius: float = EARTH_RADIUS) -> np.ndarray:
    """Vertical component of the curl of the wind, s⁻¹, by central differences of second order:

        ζ = (∂v/∂λ − ∂(u cos φ)/∂φ) / (radius · cos φ)

    u, v  eastward and northward wind, m/s [..., latitude, longitude]

    The rows at the poles, where cos φ = 0, are 0.
    """
    rows, columns = u.shape[-2:]
    cosine = np.cos(latitudes(rows))[:, None]
    along = (np.roll(v, -1, -1) - np.roll(v, 1, -1)) / (4 * np.pi / columns)
    flux = u * cosine
    across = (flux[..., 2:, :] - flux[..., :-2, :]) / (2 * np.pi / (rows - 1))
    vorticity = np.zeros(np.broadcast_shapes(u.shape, v.shape))
    vorticity[..., 1:-1, :] = (along[..., 1:-1, :] - across) / (radius * cosine[1:-1])
    return vorticity


def cyclonic_vorticity(u: np.ndarray, v: np.ndarray, radius: float = EARTH_RADIUS) -> np.ndarray:
    """Vorticity that is positive where the rotation has the sense of the Earth's: ζ · sign(latitude), s⁻¹."""
    return relative_vorticity(u, v, radius) * np.sign(np.round(latitudes(u.shape[-2]), 9))[:, None]


def coarsen(field: np.ndarray) -> np.ndarray:
    """Every second point, as the mean of its neighbourhood with weights ¼ ½ ¼ in each direction.

    Latitudes are weighted by cos φ in addition. [..., 2m + 1, 2n] → [..., m + 1, n]. Raises ValueError for a grid
    that has no such half.
    """
    rows, columns = field.shape[-2:]
    if rows % 2 == 0 or columns % 2:
        raise ValueError(
            f"cannot coarsen {rows} × {columns} points; expected an odd number of rows, an even of columns"
        )
    smooth = field / 2 + (np.roll(field, 1, -1) + np.roll(field, -1, -1)) / 4
    # a row of triangles has an area of cos φ, that of a pole is taken as a quarter of its neighbour's
    area = np.cos(latitudes(rows))
    area[[0, -1]] = area[1] / 4
    weight, total = _smooth_rows(area[:, None]), _smooth_rows(smooth * area[:, None])
    return (total / weight)[..., ::2, ::2]


def _smooth_rows(x: np.ndarray) -> np.ndarray:
    out = x / 2
    out[..., 1:, :] += x[..., :-1, :] / 4
    out[..., :-1, :] += x[..., 1:, :] / 4
    return out


def refine(field: np.ndarray) -> np.ndarray:
    """Bilinear interpolation to the grid with half the spacing: [..., m + 1, n] → [..., 2m + 1, 2n]."""
    rows, columns = field.shape[-2:]
    wide = np.empty((*field.shape[:-1], 2 * columns), field.dtype)
    wide[..., ::2] = field
    wide[..., 1::2] = (field + np.roll(field, -1, -1)) / 2
    fine = np.empty((*field.shape[:-2], 2 * rows - 1, 2 * columns), field.dtype)
    fine[..., ::2, :] = wide
    fine[..., 1::2, :] = (wide[..., 1:, :] + wide[..., :-1, :]) / 2
    return fine
