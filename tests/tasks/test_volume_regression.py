"""Regression from volumes: augmentation, loss, metrics, miniature, and the evaluation beside ridge regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ds4sci.data.array_shards import write_shard
from ds4sci.models.cnn3d import Config as ModelConfig
from ds4sci.tasks import volume_regression as module
from ds4sci.tasks.evaluations import EvaluationRequest
from ds4sci.tasks.volume_regression import Config, DataConfig, build, cube_symmetry

SIZE = 4


def write(folder: Path, train: int = 40, valid: int = 11) -> Path:
    """Volumes whose two targets are the log-variances of their channels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("valid", valid)):
        targets = rng.uniform(-1, 1, (count, 2)).astype(np.float32)
        volumes = rng.normal(size=(count, 2, SIZE, SIZE, SIZE)) * np.exp(targets / 2)[:, :, None, None, None]
        write_shard(folder, split, 0, volumes.astype(np.float16), targets)
    return folder


def task(folder: Path, **data: object) -> module.VolumeRegression:
    model = ModelConfig(channels=(4, 6), hidden=(8,), whitening_examples=16)
    return build(Config(data=DataConfig(path=folder, **data), model=model), seed=1, steps=10)


def test_symmetries_of_the_cube_are_48_different_ones_that_keep_neighbours() -> None:
    volume = np.arange(2 * 27).reshape(2, 3, 3, 3)
    seen = {cube_symmetry(volume, number).tobytes() for number in range(48)}
    assert len(seen) == 48
    np.testing.assert_array_equal(cube_symmetry(volume, 0), volume)
    place = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"))
    for number in range(48):
        moved = np.array([cube_symmetry(axis, number) for axis in place])
        for axis in range(1, 4):
            steps = np.abs(np.diff(moved, axis=axis)).sum(axis=0)
            assert (steps == 1).all(), "cells that touch still touch"


def test_augmentation_keeps_cells_and_targets_and_is_deterministic(tmp_path: Path) -> None:
    one = task(write(tmp_path))
    inputs, targets = one.train[0]
    drawn = [one.augment(inputs, targets, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0][0], drawn[1][0])
    assert not np.array_equal(drawn[0][0], drawn[2][0])
    for volume, same in drawn:
        np.testing.assert_array_equal(np.sort(volume.reshape(2, -1)), np.sort(inputs.reshape(2, -1)))
        np.testing.assert_array_equal(same, targets)
    plain = task(tmp_path, symmetries=False, shifts=False)
    np.testing.assert_array_equal(plain.augment(inputs, targets, np.random.default_rng(0))[0], inputs)


def test_batches_do_not_depend_on_the_split(tmp_path: Path) -> None:
    one = task(write(tmp_path))

    def volumes(ranks: int, micro: int, accumulation: int) -> torch.Tensor:
        streams = [
            one.batches(
                start_step=3, rank=rank, world_size=ranks, micro_batch_size=micro, accumulation_steps=accumulation
            )
            for rank in range(ranks)
        ]
        return torch.cat([next(stream).inputs for _ in range(accumulation) for stream in streams])

    expected = volumes(1, 8, 1)
    torch.testing.assert_close(volumes(2, 4, 1), expected, rtol=0, atol=0)
    torch.testing.assert_close(volumes(2, 2, 2), expected, rtol=0, atol=0)


def test_loss_is_the_mean_over_examples_and_metrics_are_absolute_errors(tmp_path: Path) -> None:
    one = task(write(tmp_path), targets=["omega", "sigma"])
    batch = next(one.batches(start_step=0, rank=0, world_size=1, micro_batch_size=4, accumulation_steps=1))
    output = one.model(batch).detach()
    loss, terms = one.loss(output, batch)
    assert float(loss) == pytest.approx(float(((output - batch.targets) ** 2).mean()), rel=1e-6)
    assert float(terms["mae"]) == pytest.approx(float((output - batch.targets).abs().mean()), rel=1e-6)
    rows = one.evaluate(one.model.eval(), rank=0, world_size=1, device=torch.device("cpu"))
    metrics = one.summarize(rows)
    with torch.no_grad():
        predicted = one.model(torch.stack([torch.from_numpy(x.astype(np.float32)) for x, _ in one.valid])).numpy()
    difference = np.abs(predicted - np.stack([y for _, y in one.valid])).mean(axis=0)
    assert metrics["mae"] == pytest.approx(difference.mean(), rel=1e-5)
    assert metrics["score"] == -metrics["mae"]
    assert [metrics["mae_omega"], metrics["mae_sigma"]] == pytest.approx(difference.tolist(), rel=1e-5)
    halves = [one.evaluate(one.model, rank=rank, world_size=2, device=torch.device("cpu")) for rank in range(2)]
    assert sorted(row["id"] for rows in halves for row in rows) == sorted(row["id"] for row in rows)


def test_whitening_is_fitted_to_the_training_volumes(tmp_path: Path) -> None:
    write(tmp_path)
    one, two = (task(tmp_path, symmetries=False, shifts=False) for _ in range(2))
    volumes = torch.stack([torch.from_numpy(one.train[i][0].astype(np.float32)) for i in range(16)])
    assert one.model.whitening is not None
    assert two.model.whitening is not None
    with torch.no_grad():
        white = one.model.whitening(one.model.features(volumes))
    assert white.mean(dim=0).abs().max() < 1e-3
    values = torch.linalg.eigvalsh(white.T @ white / 16)
    assert values.max() < 1
    assert (values > 0.9).sum() >= 8, "most of the at most 15 directions of 16 volumes have unit variance"
    torch.testing.assert_close(two.model.whitening.weight, one.model.whitening.weight, rtol=0, atol=0)


def test_evaluation_shows_network_ridge_and_constant_side_by_side(tmp_path: Path) -> None:
    one = task(write(tmp_path, train=200), targets=["omega", "sigma"])
    result = one.evaluations()["held_out"].run(EvaluationRequest(torch.device("cpu")))
    assert [row[0] for row in result.values["comparison"]["rows"]] == [
        "network", "ridge on P(k) and moments", "mean of the training data",
    ]  # fmt: skip
    ridge, constant = (own["mae"] for own in result.values["baselines"].values())
    assert ridge < 0.15 < 0.3 < constant
    assert result.is_validation
    for entry in result.values["figures"]:
        with (tmp_path / entry["file"]).open("wb") as file:
            result.report_files[entry["file"]](file)
        assert (tmp_path / entry["file"]).read_text().count("<svg") == 1
    assert "omega" in (tmp_path / "scatter.svg").read_text()
    assert "channel 1" in (tmp_path / "slices.svg").read_text()


def test_miniature_needs_no_data_if_names_are_given(tmp_path: Path) -> None:
    config = Config(data=DataConfig(path="absent-1", channels=["a", "b", "c"], targets=["x"]))
    made = Config.model_validate(module.miniature(config, tmp_path))
    built = build(made, seed=0, steps=1)
    assert built.shape == (3, 16, 16, 16)
    assert len(made.model.channels) == len(config.model.channels)
    assert built.names == ("x",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"targets": ["a"]}, "data.targets has 1 names; the dataset has 2 targets"),
        ({"channels": ["a", "b", "c"]}, "data.channels has 3 names; the dataset has 2 channels"),
    ],
)
def test_names_must_fit_the_dataset(data: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        task(write(tmp_path), **data)


def test_shapes_that_are_no_volumes_are_refused(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_shard(tmp_path, split, 0, np.zeros((3, 2, 4, 4, 5), np.float32), np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"inputs \[2, 4, 4, 5\] and targets \[2\] of an example; expected \[channels"):
        task(tmp_path)
