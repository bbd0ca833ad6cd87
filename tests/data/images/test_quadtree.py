"""Adaptive patches: they tile the image, meet the error, and are fewest where the image is smooth."""

from __future__ import annotations

import numpy as np
import pytest

from ds4sci.data.images.quadtree import adaptive_patches, uniform_mse


def terrain() -> np.ndarray:
    """A rough island in a smooth sea, 64 × 128."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :128]
    island = np.exp(-((rows - 30) ** 2 + (columns - 80) ** 2) / 150)
    return island * (1000 + 400 * rng.normal(size=(64, 128))) + columns


def test_patches_tile_the_image_and_have_the_error_that_they_say() -> None:
    image = terrain()
    tree = adaptive_patches(image, largest=32, smallest=2, mse=uniform_mse(image, 4))
    seen = np.zeros(image.shape, int)
    for (row, column), n in zip(tree.corner, tree.edge, strict=True):
        assert row % n == 0
        assert column % n == 0
        seen[row : row + n, column : column + n] += 1
    assert np.all(seen == 1)
    assert tree.mse == pytest.approx(np.square(image - tree.reconstruct(image)).mean(), rel=1e-9)
    assert tree.mse <= uniform_mse(image, 4)


def test_fewer_patches_than_equal_ones_of_the_same_error() -> None:
    image = terrain()
    equal = image.size // 16
    tree = adaptive_patches(image, largest=32, smallest=2, mse=uniform_mse(image, 4))
    assert len(tree) * 4 <= equal, (len(tree), equal)
    assert set(tree.edge.tolist()) >= {2, 16}
    blocks = image.reshape(16, 4, 32, 4).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    assert uniform_mse(image, 4) == pytest.approx(np.square(image - blocks).mean(), rel=1e-9)


def test_a_lower_error_needs_more_patches_down_to_the_smallest() -> None:
    image = terrain()
    least = uniform_mse(image, 2)
    counts = [
        len(adaptive_patches(image, largest=16, smallest=2, mse=mse)) for mse in (1e9, 4 * least, 2 * least, least)
    ]
    assert counts == sorted(counts)
    assert counts[0] == image.size // 256
    odd = image[:60, :120]
    assert len(adaptive_patches(odd, largest=12, smallest=3, mse=uniform_mse(odd, 6))) < odd.size // 36
    constant = adaptive_patches(np.full((16, 16), 7.0), largest=16, smallest=1, mse=0.0)
    assert (len(constant), constant.mse) == (1, 0.0)


def test_weights_are_those_of_the_error_and_of_the_means() -> None:
    image = terrain()
    weight = np.linspace(0.1, 2, 64)[:, None]
    error = uniform_mse(image, 4, weight)
    tree = adaptive_patches(image, largest=32, smallest=2, mse=error, weight=weight)
    squares = np.square(image - tree.reconstruct(image, weight)).mean(1)
    assert tree.mse == pytest.approx((squares * weight[:, 0]).sum() / weight.sum(), rel=1e-9)
    assert tree.mse <= error
    with pytest.raises(ValueError, match=r"weights of points from 0\.0; expected positive numbers"):
        uniform_mse(image, 4, np.zeros((64, 1)))


def test_impossible_patches_are_refused() -> None:
    image = terrain()
    for largest, smallest in ((24, 2), (32, 3), (128, 2)):
        with pytest.raises(ValueError, match="expected edges that differ by powers of two and divide the image"):
            adaptive_patches(image, largest=largest, smallest=smallest, mse=1.0)
    with pytest.raises(ValueError, match="patches of 4 points have"):
        adaptive_patches(image, largest=32, smallest=4, mse=1e-3)
