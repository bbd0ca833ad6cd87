"""Dataset of matter density boxes: deterministic for any number of processes; targets are the box's own parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds4sci.data.array_shards import ArrayShards
from ds4sci.datasets import cosmo
from ds4sci.datasets.lpt import Cosmology, density_boxes


def test_files_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    for jobs in (1, 2):
        (tmp_path / str(jobs)).mkdir()
        cosmo.make_shards(tmp_path / str(jobs), {"train": 5, "valid": 2}, grid=8, box=64.0, shard=2, jobs=jobs)
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert names == [f"train-0000{i}.safetensors" for i in range(3)] + ["valid-00000.safetensors"]
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    train, valid = (ArrayShards.find(tmp_path / "1", split) for split in ("train", "valid"))
    assert (len(train), len(valid)) == (5, 2)
    every = [targets for _, targets in [*train, *valid]]
    assert len({tuple(targets) for targets in every}) == 7, "no two boxes share a cosmology"
    for number, (inputs, targets) in enumerate(train):
        expected, of_box = cosmo.example(cosmo.SEED, "train", number, grid=8, box=64.0)
        np.testing.assert_array_equal(inputs, expected)
        np.testing.assert_array_equal(targets, of_box)


def test_an_example_is_the_box_of_its_targets() -> None:
    inputs, targets = cosmo.example(3, "valid", 7, grid=8, box=64.0)
    assert inputs.shape == (4, 8, 8, 8)
    assert inputs.dtype == np.float16
    assert np.abs(targets).max() <= 1
    density = np.expm1(inputs.astype(float))
    np.testing.assert_allclose(density.mean(axis=(1, 2, 3)), 1, atol=2e-3)
    rng = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(1, 7)))
    np.testing.assert_array_equal(cosmo.draw_targets(rng), targets)
    model = Cosmology(*cosmo.to_parameters(targets))
    again = density_boxes(model, cosmo.REDSHIFTS, grid=8, box=64.0, rng=rng)
    np.testing.assert_allclose(density, again, rtol=5e-3, atol=2e-3)


def test_parameters_cover_their_range() -> None:
    rng = np.random.default_rng(0)
    targets = np.stack([cosmo.draw_targets(rng) for _ in range(500)])
    parameters = cosmo.to_parameters(targets)
    assert np.all(parameters >= 0.7 * cosmo.CENTRAL - 1e-9)
    assert np.all(parameters <= 1.3 * cosmo.CENTRAL + 1e-9)
    assert np.all(np.abs(targets.mean(axis=0)) < 0.1)
    np.testing.assert_allclose(targets.std(axis=0), np.sqrt(1 / 3), rtol=0.1)


def test_sizes_are_those_of_the_description(tmp_path: Path) -> None:
    cosmo.make_shards(tmp_path, {"valid": 2}, jobs=1)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    boxes = cosmo.SHARD * sum(cosmo.SHARDS.values())
    assert size * boxes / 2 == pytest.approx(cosmo.DATASET.size, rel=1e-2)
