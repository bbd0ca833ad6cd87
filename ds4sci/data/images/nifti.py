"""Reader and writer of NIfTI files, with nibabel: scaled values in canonical (RAS+) axes, spacing in mm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.images.image import Image, load_module

_MM = {"unknown": 1.0, "mm": 1.0, "micron": 1e-3, "meter": 1e3}
"""Millimetres per unit of the header; nibabel's name of a header without a unit is ``unknown``."""


def read(path: Path, labels: bool) -> Image:
    """See ``ds4sci.data.images.reading.read_image``. A fourth axis is refused unless it has length 1."""
    nibabel = load_module("nibabel", path)
    stored = nibabel.load(path)
    shape = stored.shape
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise ValueError(f"{path}: shape {list(shape)}; expected one volume [x, y, z] (split a series into files)")
    image = nibabel.as_closest_canonical(stored)
    slope, intercept = stored.dataobj.slope, stored.dataobj.inter
    values = np.asarray(image.dataobj).reshape(image.shape[:3])
    if (slope, intercept) != (1.0, 0.0) or values.dtype.kind == "f":
        values = values.astype(np.float32)
    scale = _MM[image.header.get_xyzt_units()[0]]
    spacing = tuple(float(x) * scale for x in reversed(image.header.get_zooms()[:3]))
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= scale
    return Image(np.ascontiguousarray(values.transpose(2, 1, 0))[None], spacing, affine=affine)


def write(path: Path, labels: np.ndarray, affine: np.ndarray) -> None:
    """Write uint8 ``labels`` [z, y, x] with the affine of ``Image`` as NIfTI, coordinates in mm."""
    nibabel: Any = load_module("nibabel", path)
    image = nibabel.Nifti1Image(labels.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
