"""Denoising: normalization, symmetries, loss, gain over non-local means, evaluation with pictures, errors."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds4sci.baselines.non_local_means import NonLocalMeans, expected_counts, mean_square
from ds4sci.data.array_shards import write_shard
from ds4sci.tasks import denoising
from ds4sci.tasks.denoising import CONTRAST, square_symmetry
from ds4sci.tasks.evaluations import EvaluationRequest
from ds4sci.types import ArrayBatch

SIZE = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng, x = np.random.default_rng(0), np.arange(SIZE)
    for split, count in (("train", 6), ("valid", 3)):
        phase = rng.uniform(0, 6, size=(count, 2, 1, 1))
        clean = 1 + 0.08 * np.cos(x[:, None] + phase[:, :1]) * np.cos(0.7 * x + phase[:, 1:])
        write_shard(tmp_path, split, 0, rng.poisson(100 * clean).astype(np.uint16), clean.astype(np.float32))
    return tmp_path


def task(folder: Path, data: dict[str, Any] | None = None, **model: Any) -> denoising.Denoising:
    settings = {
        "data": {"path": str(folder), "crop": 16} | (data or {}),
        "model": {"channels": 4, "levels": 2, "groups": 2} | model,
        "baseline": {"patch": 3, "distance": 4, "calibration_images": 2},
    }
    return denoising.build(denoising.Config.model_validate(settings), seed=0, steps=1)


def test_the_network_sees_relative_counts_and_their_noise(folder: Path) -> None:
    made = task(folder)
    counts = made.valid[0][0].astype(np.int64)
    broken = counts.copy()
    broken[0, 3, 3] = 60_000
    seen = []
    made.model.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    made.model(ArrayBatch(("a", "b"), torch.from_numpy(np.stack([counts, broken])), torch.zeros(2)))
    first, second = seen[0].double().numpy() * CONTRAST
    mean = expected_counts(counts[0])
    np.testing.assert_allclose(first[0], counts[0] / mean - 1, atol=1e-5)
    np.testing.assert_allclose(first[1], mean**-0.5, atol=1e-6)
    assert second[0, 3, 3] < 2.1, "hot pixels are limited"
    assert np.abs(second[0] - first[0])[:3].max() < 0.01


def test_the_eight_symmetries_of_the_square() -> None:
    image = np.arange(9).reshape(1, 3, 3)
    found = [square_symmetry(image, number) for number in range(8)]
    assert np.array_equal(found[0], image)
    assert len({x.tobytes() for x in map(np.ascontiguousarray, found)}) == 8
    # corners stay corners, the centre stays
    assert all(x[0, 1, 1] == 4 and set(x[0, ::2, ::2].ravel()) == {0, 2, 6, 8} for x in found)


def test_augmentation_keeps_counts_and_clean_image_together(folder: Path) -> None:
    made = task(folder)
    counts, clean = made.train[0]
    rng = np.random.default_rng(0)
    for _ in range(10):
        a, b = made.augment(clean, 2 * clean, rng)
        assert a.shape == (1, 16, 16)
        assert np.array_equal(2 * a, b)
    whole = task(folder, {"crop": None, "symmetries": False}).augment(counts, clean, rng)
    assert np.array_equal(whole[0], counts)


def test_the_loss_is_a_mean_over_samples(folder: Path) -> None:
    made = task(folder)
    own = next(made.batches(start_step=0, rank=0, world_size=1, micro_batch_size=4, accumulation_steps=1))
    with torch.no_grad():
        output = made.model(own)
        whole, _ = made.loss(output, own)
    each = ((1 + CONTRAST * output - own.targets) ** 2).mean((1, 2, 3)) / CONTRAST**2
    assert float(whole) == pytest.approx(float(each.mean()), rel=1e-4)


def test_the_gain_is_that_over_calibrated_non_local_means(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(folder)
    rows = made.evaluate(made.model, rank=0, world_size=1, device=torch.device("cpu"))
    pairs = [made.train[i] for i in range(2)]
    fitted = NonLocalMeans.fit([a[0] for a, _ in pairs], [b[0] for _, b in pairs], 3, 4)
    assert made.baseline == fitted
    gains = []
    for row, (counts, clean) in zip(rows, made.valid[:], strict=True):
        batch = ArrayBatch(("x",), torch.from_numpy(counts[None].astype(np.int64)), torch.zeros(1))
        own = 1 + CONTRAST * made.model(batch).detach().numpy()[0, 0]
        assert row["mse"] == pytest.approx(np.square(own - clean[0]).mean(), rel=1e-4)
        assert row["mse_nlm"] == pytest.approx(mean_square(fitted(counts[0]), clean[0]), rel=1e-9)
        gains.append(10 * np.log10(row["mse_nlm"] / row["mse"]))
    found = made.summarize(rows)
    assert found["gain_db"] == pytest.approx(np.mean(gains))
    assert found["psnr_db"] - found["psnr_nlm_db"] == pytest.approx(found["gain_db"])
    monkeypatch.setattr(NonLocalMeans, "__call__", lambda *_: pytest.fail("computed again"))
    assert made.evaluate(made.model, rank=0, world_size=1, device=torch.device("cpu")) == rows


def test_evaluation_draws_images(folder: Path) -> None:
    result = task(folder).evaluations()["held_out"].run(EvaluationRequest(torch.device("cpu")))
    rows = {row[0]: float(row[1]) for row in result.values["comparison"]["rows"]}
    assert rows["non-local means"] > rows["counts"]
    assert result.is_validation
    drawn, picture = io.BytesIO(), io.BytesIO()
    result.report_files["images.svg"](drawn)
    assert ET.fromstring(drawn.getvalue()).tag.endswith("svg")
    result.attachments[".png"](picture)
    assert picture.getvalue().startswith(b"\x89PNG")


def test_settings_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.crop = 64: images have 24 × 24 pixels"):
        task(folder, {"crop": 64})
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "valid"):
        write_shard(other, split, 0, np.zeros((1, 8, 8), np.uint16), np.zeros((1, 8, 8), np.float32))
    with pytest.raises(ValueError, match=r"expected \[1, n, n\] for both"):
        task(other)
