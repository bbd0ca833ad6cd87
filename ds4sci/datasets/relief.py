"""Dataset ``relief``: heights of the land and depths of the sea on a grid of 5 arc minutes, as one large image.

``relief.npz`` has ``image``, int16 [2161, 4320] in metres, from the south pole to the north pole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ds4sci.datasets import ferret
from ds4sci.datasets.dataset import Dataset
from ds4sci.files.atomic_files import replacing

_GRID = (2161, 4320)
HIGHEST = 9000
"""Largest distance from sea level that is plausible above, m; below, the trenches reach 11,000 m."""

DATASET = Dataset(
    name="relief",
    version="1",
    title="global relief, land and sea floor, on a grid of 5 arc minutes",
    origin="ETOPO5 (NOAA National Geophysical Data Center, 1988), prepared by NOAA PMEL for the program Ferret, from "
    "the Debian package ferret-datasets",
    licence=ferret.LICENCE,
    splits={"image": "one image of 2161 × 4320 points"},
    size=11_400_000,
    sources=(ferret.PACKAGE,),
)


def make(folder: Path, sources: Mapping[str, Path]) -> None:
    """Write ``relief.npz`` into ``folder``. Raises ValueError if the archive or the heights are not as expected."""
    heights = ferret.from_package(sources, "etopo5.cdf", read_heights)
    with replacing(folder / "relief.npz") as out:
        np.savez_compressed(out, image=heights, axes="YX")


def read_heights(file: Path) -> np.ndarray:
    """Return heights in metres, int16 [2161, 4320], of the NetCDF file. Raises ValueError for other contents."""
    from scipy.io import netcdf_file

    try:
        with netcdf_file(file, mmap=False) as data:
            heights = np.asarray(data.variables["ROSE"].data, np.float64)
    except (TypeError, KeyError, ValueError, IndexError, OSError) as error:
        raise ValueError(f"{file}: no readable NetCDF file with ROSE: {error!r}") from None
    if heights.shape != _GRID or not (heights.min() > -12000 and heights.max() < HIGHEST):
        raise ValueError(f"{file}: ROSE of shape {heights.shape}; expected {_GRID}, from −12,000 to {HIGHEST} m")
    return np.round(heights).astype(np.int16)
