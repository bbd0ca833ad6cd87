"""Image read from a file: values, voxel spacing, patient, and the errors that its readers share."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

READERS = {"nibabel": ("NIfTI", "nibabel"), "pydicom": ("DICOM", "pydicom"), "tifffile": ("TIFF", "tifffile"),
           "PIL": ("PNG", "pillow")}  # fmt: skip
"""Module of the extra ``images`` → the format that it reads, and its package."""


@dataclass(frozen=True)
class Image:
    """An image or a volume.

    values    [c, y, x] or [c, z, y, x]: the integers of the file, or float32 where the file scales them. Axes of NIfTI
              files and DICOM series: z from inferior to superior, y from posterior to anterior, x from left to right.
              Other images: y and x are rows and columns as stored.
    spacing   distance between voxels along each spatial axis in mm; None if the file does not say
    patient   identifier of the patient; None if the file does not say
    affine    NIfTI and DICOM volumes: float64 [4, 4], from voxel (x, y, z) to RAS+ coordinates in mm
    """

    values: np.ndarray
    spacing: tuple[float, ...] | None = None
    patient: str | None = None
    affine: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape, [y, x] or [z, y, x]."""
        return self.values.shape[1:]


def load_module(name: str, path: Path) -> Any:
    """Import a module of the extra ``images``. Raises ValueError, naming the file and the remedy, if it is absent."""
    try:
        return importlib.import_module(name)
    except ImportError:
        kind, package = READERS[name.partition(".")[0]]
        raise ValueError(f"{path}: reading {kind} needs {package}: pip install 'ds4sci[images]'") from None


def checked(path: Path, image: Image, *, labels: bool) -> Image:
    """Return ``image`` if it can be used.

    Raises ValueError for an empty image, values that are not finite numbers, spacing that is not positive, and
    ``labels`` that are not integers or have several channels.
    """
    values = image.values
    if values.ndim not in (3, 4) or values.size == 0:
        raise ValueError(f"{path}: array of shape {list(values.shape)}; expected [c, y, x] or [c, z, y, x], not empty")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: values of type {values.dtype}; expected integers or floating-point numbers")
    if values.dtype.kind == "f":
        bad = int(values.size - np.isfinite(values).sum())
        if bad:
            raise ValueError(f"{path}: {bad:,} of {values.size:,} values are NaN or infinite; replace them first")
    if labels:
        if len(values) != 1:
            raise ValueError(f"{path}: a mask of {len(values)} channels; expected one channel of class numbers")
        if values.dtype.kind == "f":
            if not np.array_equal(values, np.round(values)):
                raise ValueError(f"{path}: a mask with values that are no integers, such as {_fraction(values)}")
            values = values.astype(np.int64)
        if values.min() < 0:
            raise ValueError(f"{path}: a mask with the class {values.min()}; expected classes from 0")
    if image.spacing is not None and not (np.isfinite(image.spacing).all() and min(image.spacing) > 0):
        raise ValueError(f"{path}: voxel spacing {list(image.spacing)} mm; expected positive numbers")
    return Image(values, image.spacing, image.patient, image.affine)


def _fraction(values: np.ndarray) -> float:
    return float(values[values != np.round(values)][0])
