"""Reader of NPZ files with the array ``image`` and, optionally, ``spacing``, ``axes`` and ``patient``.

``axes`` names the axes with the letters C, Z, Y and X, in order. Without it, they are YX, ZYX (CYX if ``spacing`` has
two numbers) or CZYX, by the number of axes. ``spacing`` is in mm, in the order of the spatial axes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ds4sci.data.images.image import Image

KEYS = ("image", "spacing", "axes", "patient")


def read(path: Path, labels: bool) -> Image:
    """See ``ds4sci.data.images.reading.read_image``."""
    with np.load(path, allow_pickle=False) as archive:
        found = {key: archive[key] for key in KEYS if key in archive}
        if "image" not in found:
            raise ValueError(f"{path}: no array 'image'; it has {', '.join(archive.files) or 'no arrays'}")
    values = found["image"]
    spacing = tuple(float(x) for x in np.ravel(found["spacing"])) if "spacing" in found else None
    plain = {2: "YX", 3: "CYX" if spacing is not None and len(spacing) == 2 else "ZYX", 4: "CZYX"}
    axes = str(found["axes"]) if "axes" in found else plain.get(values.ndim, "")
    if sorted(axes) not in (sorted("YX"), sorted("ZYX"), sorted("CYX"), sorted("CZYX")) or len(axes) != values.ndim:
        raise ValueError(
            f"{path}: image of shape {list(values.shape)} with axes {axes!r}; expected the letters of YX, ZYX, CYX or "
            "CZYX, one per axis"
        )
    spatial = axes.replace("C", "")
    if spacing is not None:
        if len(spacing) != len(spatial):
            raise ValueError(f"{path}: spacing has {len(spacing)} numbers; expected one for each of {spatial}")
        spacing = tuple(spacing[spatial.index(axis)] for axis in "ZYX" if axis in spatial)
    patient = str(found["patient"]) if "patient" in found else None
    return Image(to_channels_first(values, axes), spacing, patient)


def to_channels_first(values: np.ndarray, axes: str) -> np.ndarray:
    """Return ``values``, whose axes are named by ``axes``, as [c, y, x] or [c, z, y, x]."""
    order = [axes.index(axis) for axis in "CZYX" if axis in axes]
    values = values.transpose(order)
    return values if "C" in axes else values[None]
