"""Labels and inputs of the climate dataset, from winds that the test makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import netcdf_file

from ds4sci.data.array_shards import ArrayShards
from ds4sci.data.sphere import coarsen, cyclonic_vorticity
from ds4sci.datasets import climate

MEMBER = "usr/share/ferret-vis/data/monthly_navy_winds.cdf"


def winds(months: int = climate._MONTHS) -> tuple[np.ndarray, np.ndarray]:
    """Two vortices of opposite sense in each hemisphere, and a jet, on the grid of the data."""
    phi, lam = np.linspace(-90, 90, 73)[:, None], np.arange(144) * 2.5
    u, v = np.zeros((2, 73, 144))
    for latitude, longitude, sense in ((45, 60, 1), (45, 240, -1), (-45, 60, 1), (-45, 240, -1)):
        y, x = phi - latitude, lam - longitude
        swirl = 5 * sense * np.exp(-(x**2 + y**2) / 100)
        u, v = u - swirl * y / 5, v + swirl * x / 5
    u += 14 * np.exp(-((phi + 5) ** 2) / 30) * (lam > 100) * (lam < 200)
    scale = 1 + 0.1 * np.sin(np.arange(months))[:, None, None]
    return (scale * u).astype(np.float32).astype(float), (scale * v).astype(np.float32).astype(float)


def write_archive(folder: Path, u: np.ndarray, v: np.ndarray, names: tuple[str, str] = ("UWND", "VWND")) -> Path:
    """A folder that stands in for the Debian archive."""
    file = folder / MEMBER
    file.parent.mkdir(parents=True)
    with netcdf_file(file, "w") as out:
        for name, size in (("TIME", len(u)), ("FNOCY", 73), ("FNOCX", 144)):
            out.createDimension(name, size)
        out.createVariable("FNOCY", "d", ("FNOCY",))[:] = np.linspace(-90, 90, 73)
        for name, field in zip(names, (u, v), strict=True):
            out.createVariable(name, "f", ("TIME", "FNOCY", "FNOCX"))[:] = field
    return folder


def test_labels_are_cyclones_and_jets() -> None:
    u, v = winds(1)
    (labels,) = climate.make_labels(u, v)
    assert labels[54, 24] == 1, "anticlockwise in the north"
    assert labels[18, 96] == 1, "clockwise in the south"
    assert labels[54, 96] != 1
    assert labels[18, 24] != 1
    assert labels[34, 60] == 2
    assert labels[34, 100] == 0
    assert np.array_equal(labels == 1, cyclonic_vorticity(u, v)[0] >= climate.VORTICITY)
    assert np.array_equal(labels == 2, (np.hypot(u, v)[0] >= climate.SPEED) & (labels != 1))


def test_inputs_are_coarse_with_noise_of_each_month(tmp_path: Path) -> None:
    u, v = winds(6)
    inputs = climate.make_inputs(u, v)
    assert inputs.shape == (6, 2, 37, 72)
    noise = inputs - np.stack([coarsen(u), coarsen(v)], axis=1)
    assert noise.std() == pytest.approx(climate.NOISE, rel=0.02)
    assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1]) < 0.03
    assert np.array_equal(climate.make_inputs(u[:2], v[:2]), inputs[:2])
    assert not np.allclose(climate.make_inputs(u, v, seed=1), inputs)


def test_the_dataset_is_made_from_the_archive_and_split_by_year(tmp_path: Path) -> None:
    u, v = winds()
    archive, out = write_archive(tmp_path / "archive", u, v), tmp_path / "out"
    out.mkdir()
    climate.make(out, {"ferret-datasets": archive})
    train, valid = (ArrayShards.find(out, split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (108, 24)
    assert np.array_equal(valid[0][1], climate.make_labels(u, v)[108])
    assert np.array_equal(train[5][0], climate.make_inputs(u, v)[5])
    assert sum(file.stat().st_size for file in out.iterdir()) == pytest.approx(climate.DATASET.size, rel=0.05)


def test_other_files_are_refused(tmp_path: Path) -> None:
    u, v = winds(132)
    for name, arguments, message in (
        ("short", (u[:12], v[:12]), r"UWND is \(12, 73, 144\); expected \(132, 73, 144\)"),
        ("gaps", (u, np.where(np.arange(144) == 7, -99.9, v)), "VWND has missing values or winds above 80 m/s"),
        ("names", (u, v, ("U", "VWND")), "no readable NetCDF file with UWND"),
    ):
        archive = write_archive(tmp_path / name, *arguments)
        with pytest.raises(ValueError, match=message):
            climate.read_winds(archive / MEMBER)
    (tmp_path / "text.cdf").write_text("no winds")
    with pytest.raises(ValueError, match=r"text\.cdf: no readable NetCDF file"):
        climate.read_winds(tmp_path / "text.cdf")
