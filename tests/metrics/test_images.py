"""PSNR by hand and against scikit-image; confusion matrix and IoU by hand."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from ds4sci.metrics.images import confusion, iou, psnr


def test_psnr() -> None:
    assert psnr(0.01, 1.0) == pytest.approx(20)
    a, b = np.random.default_rng(0).normal(size=(2, 9, 9))
    expected = peak_signal_noise_ratio(a, b, data_range=np.ptp(a))
    assert psnr(float(np.square(a - b).mean()), float(np.ptp(a))) == pytest.approx(expected)


def test_counts_and_iou_by_hand() -> None:
    labels, predicted = np.array([[0, 0, 1], [1, 1, 0]]), np.array([[0, 1, 1], [1, 0, 0]])
    matrix = confusion(labels, predicted, 3)
    assert matrix.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert iou(matrix)[:2] == pytest.approx([2 / 4, 2 / 4])
    assert np.isnan(iou(matrix)[2]), "a class that neither contains has no IoU"


def test_iou_against_sets() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(4, size=(2, 5, 7, 9))
    found = iou(confusion(labels, predicted, 4))
    for k in range(4):
        a, b = labels == k, predicted == k
        assert found[k] == pytest.approx((a & b).sum() / (a | b).sum())


def test_unknown_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="predictions from 0 to 3; expected classes 0 to 2"):
        confusion(np.zeros(2), np.array([0, 3]), 3)
