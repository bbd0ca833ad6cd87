"""Generated micrographs: geometry of the lattice, defects, counts, and determinism."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from ds4sci.data.array_shards import ArrayShards
from ds4sci.datasets import graphene
from ds4sci.datasets.graphene import BOND, damage, detect, honeycomb, make_micrograph


def neighbours(atoms: np.ndarray, within: float = 1.2 * BOND) -> list[list[int]]:
    return cKDTree(atoms).query_ball_point(atoms, within)


def interior(atoms: np.ndarray, radius: float) -> np.ndarray:
    return np.flatnonzero(np.hypot(*atoms.T) < radius)


def test_every_atom_has_three_neighbours_at_the_bond_length() -> None:
    atoms = honeycomb(20.0)
    found = neighbours(atoms)
    for i in interior(atoms, 17):
        own = [j for j in found[i] if j != i]
        assert len(own) == 3
        bonds = atoms[own] - atoms[i]
        assert np.linalg.norm(bonds, axis=1) == pytest.approx([BOND] * 3)
        assert bonds.sum(0) == pytest.approx([0, 0], abs=1e-9), "angles of 120°"
    assert len(atoms) / (np.pi * 400) == pytest.approx(4 / (3 * np.sqrt(3) * BOND**2), rel=0.02), "atoms per Å²"


def test_peaks_of_the_fourier_transform_belong_to_a_lattice_constant_of_2_46() -> None:
    """First-order reflections at q = 2/(√3 · 2.46 Å) = 0.469 Å⁻¹, six of them at 60°."""
    size, pixel = 512, 0.1
    atoms = honeycomb(60.0) + size * pixel / 2
    inside = np.all((atoms >= 0) & (atoms < size * pixel), axis=1)
    microscope = graphene.Microscope(80e3, -50.0, 0.0, 10.0, 0.0)
    window = np.hanning(size)[:, None] * np.hanning(size)
    spectrum = np.abs(np.fft.fft2((microscope.image(atoms[inside], size, pixel) - 1) * window))
    q = np.stack(np.meshgrid(*[np.fft.fftfreq(size, pixel)] * 2, indexing="ij"), axis=-1)
    strongest = []
    for _ in range(6):
        peak = np.unravel_index(spectrum.argmax(), spectrum.shape)
        strongest.append(q[peak])
        spectrum[np.linalg.norm(q - q[peak], axis=-1) < 0.1] = 0
    lengths = np.linalg.norm(strongest, axis=1)
    assert lengths == pytest.approx([2 / (np.sqrt(3) * 2.46)] * 6, abs=0.6 / (size * pixel))
    angles = np.sort(np.degrees(np.arctan2(*np.array(strongest).T)) % 360)
    assert np.diff(angles) == pytest.approx([60] * 5, abs=3)


@pytest.mark.parametrize("kind", ["vacancy", "divacancy", "stone_wales"])
def test_defects(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphene, "HOLES", 0.0)
    monkeypatch.setattr(graphene, "DEFECTS", {kind: 1.0})
    before = honeycomb(25.0)
    after = damage(np.random.default_rng(3), before, 3000.0, rounds=0)
    lost = len(before) - len(after)
    moved = [i for i, atom in enumerate(after) if np.abs(before - atom).sum(1).min() > 1e-9]
    if kind == "stone_wales":
        assert lost == 0
        assert moved
        assert len(moved) % 2 == 0
        found = neighbours(after, 1.1 * BOND)
        assert all(len(found[i]) == 4 for i in moved), "still three bonds, one of them to the partner"
    else:
        assert not moved
        assert lost > 0
        assert lost % {"vacancy": 1, "divacancy": 2}[kind] == 0


def test_holes_grow_with_the_rounds_at_their_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphene, "DEFECTS", {})
    before, sizes = honeycomb(25.0), []
    for rounds in (0, 3, 12):
        after = damage(np.random.default_rng(5), before, 2000.0 / graphene.HOLES, rounds)
        sizes.append(len(before) - len(after))
        vacant = [atom for atom in before if np.abs(after - atom).sum(1).min() > 1e-9]
        near = neighbours(np.array(vacant)) if len(vacant) > 1 else []
        assert rounds == 0 or np.mean([len(own) > 1 for own in near]) > 0.9, "holes are connected"
    assert 1 <= sizes[0] < sizes[1] < sizes[2]


def test_counts_are_poisson_and_defective_pixels_have_their_share() -> None:
    rng = np.random.default_rng(0)
    counts, defective = detect(rng, np.full((800, 800), 1.1), 50.0)
    good = counts[~defective].astype(float)
    assert good.mean() == pytest.approx(55, rel=2e-3)
    assert good.var() == pytest.approx(good.mean(), rel=0.01)
    dead, hot = np.mean(counts == 0), np.mean(counts > 150)
    assert dead == pytest.approx(graphene.DEAD, rel=0.15)
    assert hot == pytest.approx(graphene.HOT, rel=0.25)
    assert defective.mean() == pytest.approx(graphene.DEAD + graphene.HOT, rel=0.15)


def test_a_micrograph_depends_on_seed_and_number_only() -> None:
    first, again, other = (make_micrograph(*key, size=48) for key in ((0, 3), (0, 3), (0, 4)))
    assert np.array_equal(first.counts, again.counts)
    assert np.array_equal(first.clean, again.clean)
    assert not np.array_equal(first.counts, other.counts)
    assert graphene.PIXELS[0] <= first.pixel <= graphene.PIXELS[1]
    assert graphene.DOSES[0] <= first.dose <= graphene.DOSES[1]
    ok = ~first.defective
    residual = first.counts[ok] / (first.dose * first.pixel**2) - first.clean[ok]
    assert residual.std() == pytest.approx(1 / np.sqrt(first.dose * first.pixel**2), rel=0.1)
    assert first.clean.mean() == pytest.approx(1, abs=0.01)


def test_atoms_of_the_image_are_where_its_contrast_is() -> None:
    image = next(one for one in (make_micrograph(0, i) for i in range(20)) if one.microscope.defocus < -50)
    inside = np.all((image.positions > 0) & (image.positions < 95 * image.pixel), axis=1)
    rows, columns = np.round(image.positions[inside] / image.pixel).astype(int).T
    assert abs(image.clean[rows, columns].mean() - image.clean.mean()) > 0.3 * image.clean.std()


def test_the_dataset_is_written_as_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TRAIN": 3, "VALID": 1, "PER_SHARD": 2}.items():
        monkeypatch.setattr(graphene, name, value)
    graphene.make(tmp_path, {})
    train, valid = (ArrayShards.find(tmp_path, split) for split in ("train", "valid"))
    assert (len(train), len(valid), len(train.files)) == (3, 1, 2)
    assert np.array_equal(valid[0][0][0], make_micrograph(graphene.SEED, 3).counts)
    assert train[0][0].dtype == np.uint16
    assert train[0][1].shape == (1, graphene.SIZE, graphene.SIZE)
