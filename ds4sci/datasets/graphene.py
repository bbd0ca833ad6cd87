"""Dataset ``graphene``: generated electron micrographs of graphene with defects and beam damage, as counts and clean.

Every image is a function of (seed, its number). It has

- a honeycomb lattice (bond 1.42 Å) at random orientation, position, strain and magnification;
- vacancies, divacancies and Stone–Wales defects, without relaxation of their neighbours;
- holes that beam damage has grown from single vacancies: in each round an atom is lost with a probability proportional
  to the number of its lost neighbours, since atoms at an edge are bound the least (Meyer et al., Phys. Rev. Lett. 108
  (2012) 196102);
- the weak-phase contrast of ``ds4sci.datasets.electron_optics`` at 80 kV, in an aberration-corrected microscope;
- Poisson noise at the dose per pixel, dead pixels (count 0) and hot ones.

The target is the relative intensity without noise and defective pixels, at the end of the exposure: growth of holes
during the exposure and the detector's response are left out. The task is that of ``em_denoise`` of SciML-Bench.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from ds4sci.data.array_shards import write_shard
from ds4sci.datasets.dataset import Dataset
from ds4sci.datasets.electron_optics import Microscope

BOND = 1.42
"""Distance of neighbours, Å; the lattice constant is √3 · 1.42 = 2.46 Å."""
SIZE, MARGIN = 96, 24
"""Pixels of an image along each axis, and pixels around it that are computed and cut off: the image is computed on a
periodic square, whose lattice does not continue across the edges."""
PIXELS = (0.18, 0.24)
"""Range of the pixel size, Å."""
DOSES = (1000.0, 10000.0)
"""Range of the dose, electrons per Å², uniform in its logarithm."""
STRAIN = 0.02
"""Largest absolute value of the components of the strain."""
DEFECTS = {"vacancy": 1.5, "divacancy": 1.0, "stone_wales": 1.5}
"""Mean numbers of defects per 1,000 Å²."""
HOLES, ROUNDS, LOSS = 0.5, 10, 0.2
"""Mean number of holes per 1,000 Å², largest number of rounds of their growth, and probability per lost neighbour."""
DEFOCUS, CS, FOCAL_SPREAD, SEMI_ANGLE = (20.0, 60.0), 5e4, (8.0, 20.0), 3e-4
"""Range of |defocus|, Å, of either sign; largest |Cs|, Å (5 µm); range of the focal spread, Å; semi-angle, radians: an
aberration-corrected microscope with a monochromator, for which C_c ΔE/E = 1.6 mm · 0.05 eV/80 keV = 10 Å."""
VOLTAGE = 80e3
"""V, below the threshold at which the beam displaces atoms of intact graphene."""
DEAD, HOT = 0.002, 0.001
"""Probabilities that a pixel is dead or hot."""
HOT_FACTOR = (4.0, 20.0)
"""Range of the mean count of a hot pixel, relative to the mean of the others."""
SEED = 0
TRAIN, VALID, PER_SHARD = 1024, 64, 256

DATASET = Dataset(
    name="graphene",
    version="1",
    title="generated electron micrographs of graphene: counts and clean images",
    origin="generated here: honeycomb lattice with defects, weak-phase contrast, Poisson noise; scattering factors of "
    "Peng et al., Acta Cryst. A52 (1996) 257",
    licence="Apache-2.0, as this package",
    splits={"train": f"{TRAIN:,} images of {SIZE} × {SIZE}", "valid": f"{VALID} images"},
    size=(TRAIN + VALID) * SIZE**2 * 6,
)


@dataclass(frozen=True)
class Micrograph:
    """One image and how it was made.

    counts      uint16 [n, n], electrons per pixel
    clean       float32 [n, n], relative intensity without noise; the intensity of vacuum is 1
    positions   (y, x) of the atoms, Å [a, 2], relative to the centre of pixel (0, 0); some are outside the image
    defective   bool [n, n], dead and hot pixels
    pixel       Å
    dose        electrons per Å²
    microscope  imaging conditions
    """

    counts: np.ndarray
    clean: np.ndarray
    positions: np.ndarray
    defective: np.ndarray
    pixel: float
    dose: float
    microscope: Microscope


def make(folder: Path, sources: Mapping[str, Path]) -> None:
    """Write the shards into ``folder``. Validation images have the numbers after the training images."""
    for split, numbers in (("train", range(TRAIN)), ("valid", range(TRAIN, TRAIN + VALID))):
        for shard, first in enumerate(range(0, len(numbers), PER_SHARD)):
            images = [make_micrograph(SEED, number) for number in numbers[first : first + PER_SHARD]]
            write_shard(
                folder, split, shard, np.stack([image.counts[None] for image in images]),
                np.stack([image.clean[None] for image in images]),
            )  # fmt: skip


def make_micrograph(seed: int, number: int, size: int = SIZE) -> Micrograph:
    """Return image ``number`` of ``seed``."""
    rng = np.random.default_rng([seed, number])
    pixel, dose = float(rng.uniform(*PIXELS)), float(np.exp(rng.uniform(*np.log(DOSES))))
    microscope = Microscope(
        VOLTAGE, defocus=float(rng.choice([-1, 1]) * rng.uniform(*DEFOCUS)), cs=float(rng.uniform(-CS, CS)),
        focal_spread=float(rng.uniform(*FOCAL_SPREAD)), semi_angle=SEMI_ANGLE,
    )  # fmt: skip
    whole = size + 2 * MARGIN
    ideal, map_to_image = lattice(rng, whole * pixel)
    atoms = map_to_image(damage(rng, ideal, (whole * pixel) ** 2, int(rng.integers(ROUNDS + 1))))
    inside = np.all((atoms >= 0) & (atoms < whole * pixel), axis=1)
    image = microscope.image(atoms[inside], whole, pixel)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    counts, defective = detect(rng, image, dose * pixel**2)
    return Micrograph(
        counts, image.astype(np.float32), atoms[inside] - MARGIN * pixel, defective, pixel, dose, microscope
    )


class LatticeMap:
    """Rotation, strain and shift: x → (1 + ε) R x + t, for positions [a, 2]."""

    def __init__(self, angle: float, strain: np.ndarray, shift: np.ndarray) -> None:
        c, s = np.cos(angle), np.sin(angle)
        self.matrix, self.shift = (np.eye(2) + strain) @ np.array([[c, -s], [s, c]]), shift

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return positions @ self.matrix.T + self.shift


def lattice(rng: np.random.Generator, width: float) -> tuple[np.ndarray, LatticeMap]:
    """Return a perfect lattice, Å [a, 2], and a random map of it that covers the square [0, ``width``)²."""
    strain = rng.uniform(-STRAIN, STRAIN, size=(2, 2))
    place = LatticeMap(rng.uniform(0, np.pi / 3), (strain + strain.T) / 2, np.full(2, width / 2))
    return honeycomb(width * (0.75 + STRAIN)) + rng.uniform(-BOND, BOND, size=2), place


def honeycomb(radius: float) -> np.ndarray:
    """Atoms within ``radius`` Å of the origin, [a, 2], bonds of ``BOND`` along the first axis."""
    a = BOND * np.sqrt(3)
    count = int(radius / a * 1.2) + 2
    i, j = np.meshgrid(np.arange(-count, count + 1), np.arange(-count, count + 1), indexing="ij")
    cells = np.stack([np.sqrt(3) / 2 * a * j, a * (i + j / 2)], axis=-1).reshape(-1, 2)
    atoms = np.concatenate([cells, cells + np.array([BOND, 0])])
    return atoms[np.hypot(*atoms.T) <= radius]


def damage(rng: np.random.Generator, atoms: np.ndarray, area: float, rounds: int) -> np.ndarray:
    """Return the lattice ``atoms`` with random defects, and holes that have grown for ``rounds``.

    area  Å², which gives the mean numbers of defects and holes
    """
    pairs = cKDTree(atoms).query_pairs(1.2 * BOND, output_type="ndarray")
    neighbours: list[list[int]] = [[] for _ in atoms]
    for i, j in pairs.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    atoms, present = atoms.copy(), np.ones(len(atoms), bool)
    whole = [i for i, own in enumerate(neighbours) if len(own) == 3]
    lost = np.zeros(len(atoms), bool)
    lost[rng.choice(whole, rng.poisson(HOLES * area / 1000))] = True
    for _ in range(rounds):
        missing = np.bincount(pairs[:, 0], lost[pairs[:, 1]], len(atoms))
        missing += np.bincount(pairs[:, 1], lost[pairs[:, 0]], len(atoms))
        lost |= rng.random(len(atoms)) < LOSS * missing
    present[lost] = False
    for kind, density in DEFECTS.items():
        for i in rng.choice(whole, rng.poisson(density * area / 1000)).tolist():
            j = int(rng.choice(neighbours[i]))
            if not present[[i, j, *neighbours[i], *neighbours[j]]].all():
                continue  # at the edge of a hole or on another defect
            if kind == "stone_wales":
                centre, half = (atoms[i] + atoms[j]) / 2, (atoms[j] - atoms[i]) / 2
                atoms[i], atoms[j] = centre - half[::-1] * [1, -1], centre + half[::-1] * [1, -1]
            else:
                present[i] = False
                present[j] &= kind == "vacancy"
    bonded = np.bincount(pairs[:, 0], present[pairs[:, 1]], len(atoms))
    bonded += np.bincount(pairs[:, 1], present[pairs[:, 0]], len(atoms))
    return atoms[present & (bonded > 0)]


def detect(rng: np.random.Generator, image: np.ndarray, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Return counts, uint16, and the mask of defective pixels for relative intensities and the mean count of vacuum."""
    counts = rng.poisson(mean * np.maximum(image, 0))
    kind = rng.random(image.shape)
    dead, hot = kind < DEAD, (kind >= DEAD) & (kind < DEAD + HOT)
    counts = np.where(hot, rng.poisson(mean * rng.uniform(*HOT_FACTOR, size=image.shape)), np.where(dead, 0, counts))
    return np.minimum(counts, np.iinfo(np.uint16).max).astype(np.uint16), dead | hot
