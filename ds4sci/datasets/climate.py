"""Dataset ``climate``: masks of cyclonic vorticity and strong wind in monthly winds, seen through coarse, noisy fields.

The winds are monthly means near the sea surface, 1982 to 1992, on a grid of 2.5° with 73 latitudes, poles included,
and 144 longitudes. Each month is an example:

- target, uint8 [73, 144]: 0 background, 1 ``VORTICITY`` or more of cyclonic vorticity, 2 otherwise ``SPEED`` or more,
  from the winds as published;
- input, float32 [2, 37, 72]: eastward and northward wind, m/s, averaged to a grid of 5°, plus Gaussian noise of
  ``NOISE`` that depends on the seed of the dataset and the month only.

As in DeepCAM (Kurth et al. 2018), two rare classes are separated from the background. The split is by year.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ds4sci.data.array_shards import write_shard
from ds4sci.data.sphere import coarsen, cyclonic_vorticity
from ds4sci.datasets import ferret
from ds4sci.datasets.dataset import Dataset

CLASSES = ("background", "cyclonic vorticity", "strong wind")
VORTICITY = 1.8e-5
"""Least cyclonic vorticity of class 1, s⁻¹: 2.0 % of the points of the grid."""
SPEED = 11.5
"""Least wind speed of class 2, m/s: 2.2 % of the points, without those of class 1."""
NOISE = 1.0
"""Standard deviation of the noise in the coarse winds, m/s."""
SEED = 0
FIRST_VALID_YEAR = 1991
_START_YEAR, _MONTHS, _GRID = 1982, 132, (73, 144)

DATASET = Dataset(
    name="climate",
    version="1",
    title="vorticity extremes and strong winds in monthly sea-surface winds, 1982–1992",
    origin="monthly means of the US Navy FNOC wind analyses on 2.5°, prepared by NOAA PMEL for the program Ferret "
    "(https://ferret.pmel.noaa.gov/Ferret), from the Debian package ferret-datasets; labels are made here",
    licence=f"{ferret.LICENCE}; the terms of the winds themselves are not stated",
    splits={"train": "108 months, 1982–1990", "valid": "24 months, 1991–1992"},
    size=4_200_000,
    sources=(ferret.PACKAGE,),
)


def make(folder: Path, sources: Mapping[str, Path]) -> None:
    """Write the shards into ``folder``. Raises ValueError if the archive or the winds are not as expected."""
    u, v = ferret.from_package(sources, "monthly_navy_winds.cdf", read_winds)
    inputs, targets = make_inputs(u, v), make_labels(u, v)
    years = _START_YEAR + np.arange(len(u)) // 12
    for split, chosen in (("train", years < FIRST_VALID_YEAR), ("valid", years >= FIRST_VALID_YEAR)):
        write_shard(folder, split, 0, inputs[chosen], targets[chosen])


def read_winds(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return eastward and northward wind, m/s, float64 [132, 73, 144], of the NetCDF file.

    Raises ValueError for other contents and for missing values.
    """
    from scipy.io import netcdf_file

    try:
        with netcdf_file(file, mmap=False) as data:
            fields = [data.variables[name].data.astype(np.float64) for name in ("UWND", "VWND")]
            south_to_north = bool(np.allclose(data.variables["FNOCY"].data, np.linspace(-90, 90, _GRID[0])))
    except (TypeError, KeyError, ValueError, IndexError, OSError) as error:
        raise ValueError(f"{file}: no readable NetCDF file with UWND, VWND and FNOCY: {error!r}") from None
    for name, field in zip(("UWND", "VWND"), fields, strict=True):
        if field.shape != (_MONTHS, *_GRID) or not south_to_north:
            raise ValueError(f"{file}: {name} is {field.shape}; expected {(_MONTHS, *_GRID)}, latitudes −90° to 90°")
        if not np.all(np.abs(field) < 80):
            raise ValueError(f"{file}: {name} has missing values or winds above 80 m/s; expected neither")
    return fields[0], fields[1]


def make_labels(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the classes of the points, uint8 [m, h, w], from winds in m/s [m, h, w]."""
    labels = np.where(np.hypot(u, v) >= SPEED, 2, 0)
    return np.where(cyclonic_vorticity(u, v) >= VORTICITY, 1, labels).astype(np.uint8)


def make_inputs(u: np.ndarray, v: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Return coarse winds with noise, float32 [m, 2, h/2, w/2]. The noise of month i depends on (seed, i) only."""
    fields = np.stack([coarsen(u), coarsen(v)], axis=1)
    noise = [np.random.default_rng([seed, month]).normal(size=fields.shape[1:]) for month in range(len(fields))]
    return (fields + NOISE * np.stack(noise)).astype(np.float32)
