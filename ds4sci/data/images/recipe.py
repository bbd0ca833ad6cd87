"""Preparation of an image for a network: spacing, intensities, and tiles of one size."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ds4sci.data.images.image import Image
from ds4sci.files.atomic_files import replace_text

RECIPE_FILE = "images.json"
"""File of a dataset of images: recipe, classes, splits and the fate of every image."""
IGNORED = 255
"""Class of the points that pad a small image; they have no weight in a loss."""


@dataclass(frozen=True)
class Recipe:
    """How images become examples.

    size       spatial shape of an example, [y, x] or [z, y, x]
    channels   number of channels of every image
    spacing    voxel spacing in mm that images are resampled to, per axis; None: images are used as they are
    normalize  ``image``: mean 0 and standard deviation 1 of each channel of each image; ``none``: values of the file
    fit        ``tiles``: an image is cut into tiles; ``whole``: it is resampled to ``size``
    overlap    least overlap of neighbouring tiles, as a fraction of ``size``
    """

    size: tuple[int, ...]
    channels: int
    spacing: tuple[float, ...] | None = None
    normalize: str = "image"
    fit: str = "tiles"
    overlap: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for settings that are impossible."""
        if len(self.size) not in (2, 3) or min(self.size) < 1:
            raise ValueError(f"size {list(self.size)}; expected two or three numbers from 1")
        if self.spacing is not None and (len(self.spacing) != len(self.size) or min(self.spacing) <= 0):
            raise ValueError(f"spacing {list(self.spacing)}; expected {len(self.size)} numbers above 0, in mm")
        if self.normalize not in ("image", "none") or self.fit not in ("tiles", "whole"):
            raise ValueError(f"normalize {self.normalize!r}, fit {self.fit!r}; expected image or none, tiles or whole")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap {self.overlap}; expected a fraction below 1")

    def prepare(self, path: Path, image: Image) -> np.ndarray:
        """Return ``image`` in the spacing and with the intensities of the recipe, float32 [c, …].

        Raises ValueError, naming ``path``, for other numbers of axes and channels, and for an unknown spacing.
        """
        if image.values.ndim - 1 != len(self.size):
            kinds = {2: "an image [y, x]", 3: "a volume [z, y, x]"}
            raise ValueError(f"{path}: {list(image.shape)}; expected {kinds[len(self.size)]}")
        if len(image.values) != self.channels:
            raise ValueError(f"{path}: {len(image.values)} channels; expected {self.channels}")
        values = image.values.astype(np.float32)
        if self.normalize == "image":
            axes = tuple(range(1, values.ndim))
            mean, scale = values.mean(axes, np.float64, keepdims=True), values.std(axes, np.float64, keepdims=True)
            if not scale.min() > 0:
                raise ValueError(f"{path}: a channel with a single value; expected an image")
            values = ((values - mean) / scale).astype(np.float32)
        shape = self.prepared_shape(path, image)
        return np.stack([resample(channel, shape, order=1) for channel in values])

    def prepare_labels(self, path: Path, image: Image, labels: np.ndarray) -> np.ndarray:
        """Return class numbers [z, y, x] or [y, x] on the grid of ``prepare``, by the nearest voxel."""
        if labels.shape != image.shape:
            raise ValueError(f"{path}: a mask of shape {list(labels.shape)}; its image has {list(image.shape)}")
        return resample(labels, self.prepared_shape(path, image), order=0)

    def prepared_shape(self, path: Path, image: Image) -> tuple[int, ...]:
        """Return the spatial shape of ``prepare(path, image)``."""
        if self.fit == "whole":
            return self.size
        if self.spacing is None:
            return image.shape
        if image.spacing is None:
            raise ValueError(
                f"{path}: its voxel spacing is unknown, but images are resampled to {list(self.spacing)} mm; leave out "
                "--spacing, or convert the image to a format that states it"
            )
        steps = zip(image.shape, image.spacing, self.spacing, strict=True)
        return tuple(max(1, round(n * own / target)) for n, own, target in steps)

    def tiles(self, shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
        """Yield the places of the tiles of an image of ``shape``, which is at least ``size``; they cover it."""
        starts = []
        for n, tile in zip(shape, self.size, strict=True):
            step = max(1, int(tile * (1 - self.overlap)))
            count = max(1, math.ceil((n - tile) / step) + 1)
            starts.append(np.round(np.linspace(0, n - tile, count)).astype(int).tolist())
        for corner in np.array(np.meshgrid(*starts, indexing="ij")).reshape(len(starts), -1).T:
            yield tuple(slice(int(a), int(a) + n) for a, n in zip(corner, self.size, strict=True))

    def padded(self, values: np.ndarray, fill: float) -> np.ndarray:
        """Return ``values`` [..., spatial] padded at the end of each spatial axis to at least ``size``."""
        spatial = values.shape[values.ndim - len(self.size) :]
        missing = [(0, max(0, n - own)) for n, own in zip(self.size, spatial, strict=True)]
        return np.pad(values, [(0, 0)] * (values.ndim - len(self.size)) + missing, constant_values=fill)

    def save(self, folder: Path, **more: Any) -> None:
        """Write the recipe and ``more`` as ``RECIPE_FILE`` of ``folder``."""
        replace_text(folder / RECIPE_FILE, json.dumps({"recipe": asdict(self), **more}, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Recipe:
        """Read ``RECIPE_FILE`` of ``folder``. Raises ValueError if there is none or it is malformed."""
        path = folder / RECIPE_FILE
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["recipe"]
            lists: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}
            return cls(**lists)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: no recipe of a dataset of images: {error!r}") from None


def resample(values: np.ndarray, shape: Sequence[int], *, order: int) -> np.ndarray:
    """Return ``values`` on a grid of ``shape`` that covers the same extent, with voxels as cells.

    order  1: linear interpolation, after averaging where the grid becomes coarser; 0: the nearest voxel

    Averaging is a Gaussian filter with the standard deviation (f − 1) / 2 voxels along an axis that becomes f times
    coarser, as in scikit-image's ``resize``.
    """
    if tuple(shape) == values.shape:
        return values
    factors = [n / m for n, m in zip(values.shape, shape, strict=True)]
    if order == 1 and max(factors) > 1:
        values = ndimage.gaussian_filter(values, [max(0.0, (f - 1) / 2) for f in factors], mode="nearest")
    places = [(np.arange(m) + 0.5) * f - 0.5 for m, f in zip(shape, factors, strict=True)]
    if order == 0:
        nearest = [
            np.clip(np.floor(place + 0.5).astype(int), 0, n - 1) for place, n in zip(places, values.shape, strict=True)
        ]
        return values[np.ix_(*nearest)]
    for axis, place in enumerate(places):
        n = values.shape[axis]
        lower = np.clip(np.floor(place).astype(int), 0, n - 1)
        upper = np.minimum(lower + 1, n - 1)
        fraction = np.clip(place - lower, 0, 1).astype(values.dtype)
        fraction = fraction.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        values = values.take(lower, axis) * (1 - fraction) + values.take(upper, axis) * fraction
    return values
