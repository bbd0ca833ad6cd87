"""Segmentation on the sphere: symmetries, loss, IoU over the whole set, evaluation with pictures, errors."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds4sci.baselines.wind_thresholds import WindThresholds
from ds4sci.data import sphere
from ds4sci.data.array_shards import write_shard
from ds4sci.datasets import climate
from ds4sci.tasks import segmentation
from ds4sci.tasks.array_task import ArrayExample, collate
from ds4sci.tasks.evaluations import EvaluationRequest
from ds4sci.tasks.evaluations.segmentation import CONSTANT, NETWORK, THRESHOLDS
from ds4sci.types import ArrayBatch

ROWS, COLUMNS = 9, 16
CLASSES = ["background", "cyclonic vorticity", "strong wind"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Random winds, smooth enough for vortices, and labels by thresholds of the fine fields."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("valid", 5)):
        winds = 8 * rng.normal(size=(count, 2, ROWS, COLUMNS))
        labels = WindThresholds(1e-5, 13.0, 0.0).predict(winds)
        assert len(np.unique(labels)) == 3
        noisy = winds + rng.normal(size=winds.shape)
        write_shard(tmp_path, split, 0, noisy.astype(np.float32), labels.astype(np.uint8))
    return tmp_path


def task(folder: Path, **data: Any) -> segmentation.Segmentation:
    settings = {
        "data": {"path": str(folder), "classes": CLASSES, "channels": ["u", "v"], "odd_channels": [1]} | data,
        "model": {"channels": 4, "levels": 2, "groups": 2, "periodic": True},
    }
    return segmentation.build(segmentation.Config.model_validate(settings), seed=0, steps=1)


def batch(made: segmentation.Segmentation, size: int = 4) -> ArrayBatch:
    return next(made.batches(start_step=0, rank=0, world_size=1, micro_batch_size=size, accumulation_steps=1))


def test_inputs_are_interpolated_to_the_grid_of_the_targets(folder: Path) -> None:
    made = task(folder)
    assert made.model(batch(made)).shape == (4, 3, 2 * ROWS - 1, 2 * COLUMNS)
    x = torch.randn(2, 3, ROWS, COLUMNS, dtype=torch.float64)
    np.testing.assert_allclose(segmentation.refine(x), sphere.refine(x.numpy()), atol=1e-15)


def test_augmentation_commutes_with_the_definition_of_the_labels(folder: Path) -> None:
    """The labels of a shifted, mirrored month are the shifted, mirrored labels."""
    made, rng = task(folder), np.random.default_rng(1)
    fine = 8 * rng.normal(size=(2, 2 * ROWS - 1, 2 * COLUMNS))
    coarse = np.stack([sphere.coarsen(x) for x in fine])
    mirrored = 0
    for seed in range(12):
        inputs, labels = made.augment(coarse, climate.make_labels(*fine[:, None])[0], np.random.default_rng(seed))
        # the same symmetry of the fine fields, found by trying all
        candidates = [
            (columns, sign, np.roll(fine, 2 * columns, -1)[:, ::sign] * np.array([1, sign])[:, None, None])
            for columns in range(COLUMNS)
            for sign in (1, -1)
        ]
        own = [c for c in candidates if np.allclose([sphere.coarsen(x) for x in c[2]], inputs)]
        assert len(own) == 1, seed
        assert np.array_equal(climate.make_labels(*own[0][2][:, None])[0], labels), seed
        mirrored += own[0][1] == -1
    assert 2 < mirrored < 10
    plain = task(folder, shift=False, mirror=False).augment(coarse, coarse[0], rng)
    assert np.array_equal(plain[0], coarse)


def test_the_loss_is_a_mean_over_samples_with_weights_of_mean_one(folder: Path) -> None:
    made = task(folder)
    own = batch(made)
    with torch.no_grad():
        output = made.model(own)
        whole, _ = made.loss(output, own)
        each = [
            made.loss(output[i : i + 1], ArrayBatch(own.ids[i : i + 1], own.inputs, own.targets[i : i + 1]))[0]
            for i in range(4)
        ]
    assert float(whole) == pytest.approx(float(torch.stack(each).mean()), rel=1e-6)
    labels = np.stack([made.train[i][1] for i in range(8)])
    assert made.class_weights[labels].mean() == pytest.approx(1)
    frequency = np.bincount(labels.ravel()) / labels.size
    assert made.class_weights[1] / made.class_weights[0] == pytest.approx((frequency[0] / frequency[1]) ** 0.125)
    weight = torch.tensor(made.class_weights, dtype=torch.float32)[own.targets]
    chosen = output.log_softmax(1).gather(1, own.targets[:, None])[:, 0]
    assert float(whole) == pytest.approx(float(-(weight * chosen).mean()), rel=1e-6)


def test_the_iou_is_that_of_all_points_together(folder: Path) -> None:
    made = task(folder)
    rows = made.evaluate(made.model, rank=0, world_size=1, device=torch.device("cpu"))
    assert [row["id"] for row in rows] == [f"valid {i}" for i in range(5)]
    own = collate([ArrayExample(str(i), *made.valid[i]) for i in range(5)])
    predicted, true = made.model(own).argmax(1), own.targets
    union = [((predicted == k) | (true == k)).sum() for k in range(3)]
    expected = [float(((predicted == k) & (true == k)).sum() / union[k]) for k in range(3)]
    found = made.summarize(rows)
    keys = ["iou_background", "iou_cyclonic_vorticity", "iou_strong_wind"]
    assert [found[key] for key in keys] == pytest.approx(expected)
    assert found["miou"] == pytest.approx(np.mean(expected))
    by_hand = [[[90, 0, 0], [5, 5, 0], [0, 0, 0]], [[100, 0, 0], [0, 0, 0], [0, 0, 0]]]
    summary = made.summarize([{"confusion": matrix} for matrix in by_hand])
    assert summary == {
        "iou_background": pytest.approx(190 / 195), "iou_cyclonic_vorticity": pytest.approx(0.5),
        "miou": pytest.approx((190 / 195 + 0.5) / 2),
    }  # fmt: skip
    parts = [made.evaluate(made.model, rank=r, world_size=2, device=torch.device("cpu")) for r in (0, 1)]
    assert made.summarize([row for part in parts for row in part]) == found


def test_evaluation_compares_with_thresholds_and_draws_maps(folder: Path) -> None:
    made = task(folder)
    result = made.evaluations()["held_out"].run(EvaluationRequest(torch.device("cpu")))
    values = result.values
    assert result.is_validation
    fitted = WindThresholds.fit(*(np.stack(x) for x in zip(*made.train[:], strict=True)))
    assert values["thresholds"] == vars(fitted)
    assert values["baselines"][THRESHOLDS]["miou"] > 0.6 > values["baselines"][CONSTANT]["miou"]
    assert [row[0] for row in values["comparison"]["rows"]] == [NETWORK, THRESHOLDS, CONSTANT]
    assert {entry["file"] for entry in values["figures"]} == set(result.report_files)
    drawn = io.BytesIO()
    result.report_files["maps.svg"](drawn)
    assert ET.fromstring(drawn.getvalue()).tag.endswith("svg")
    picture = io.BytesIO()
    result.attachments[".png"](picture)
    assert picture.getvalue().startswith(b"\x89PNG")


def test_data_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class 2; data\.classes names 2 classes"):
        task(folder, classes=["a", "b"])
    with pytest.raises(ValueError, match=r"data\.odd_channels = \[2\]; the dataset has 2 channels"):
        task(folder, odd_channels=[2])
    other = tmp_path / "other"
    other.mkdir()
    write_shard(other, "train", 0, np.zeros((1, 2, 5, 8), np.float32), np.zeros((1, 5, 9), np.uint8))
    write_shard(other, "valid", 0, np.zeros((1, 2, 5, 8), np.float32), np.zeros((1, 5, 9), np.uint8))
    with pytest.raises(ValueError, match=r"expected inputs \[channels, h, w\] and integers"):
        task(other)


def test_errors_of_single_examples(folder: Path) -> None:
    """EL2N and the part of the points that are right, of each example, by hand."""
    made = task(folder)
    own = batch(made)
    with torch.no_grad():
        output = made.model(own)
    errors, correct = made.sample_errors(output, own)
    assert errors.shape == correct.shape == (len(own.ids),)
    probabilities, labels = output.double().softmax(1).numpy(), own.targets.numpy()
    for i in range(len(own.ids)):
        one_hot = np.eye(len(made.classes))[labels[i]].transpose(2, 0, 1)
        by_hand = np.sqrt(np.square(probabilities[i] - one_hot).sum(0)).mean()
        assert float(errors[i]) == pytest.approx(by_hand, rel=1e-5)
        assert float(correct[i]) == pytest.approx((probabilities[i].argmax(0) == labels[i]).mean())
