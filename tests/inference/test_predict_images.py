"""``ds4sci predict --images``: masks on the voxels of the image, tiles averaged, failures by name."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from ds4sci.data.images.image import Image
from ds4sci.data.images.recipe import Recipe
from ds4sci.inference import predict_images as module
from ds4sci.inference.predict_images import image_logits, predict_images


class Brightness:
    """A task whose class is the sign of the intensity, by tiles."""

    classes = ("dark", "bright")

    def __init__(self, recipe: Recipe) -> None:
        self.own = recipe

    def recipe(self, run: Path) -> Recipe:
        return self.own

    def logits(self, examples: np.ndarray, device: torch.device) -> np.ndarray:
        assert examples.shape[2:] == self.own.size
        return np.concatenate((-examples, examples), axis=1)


class Loaded:
    """Stand-in of a trained run."""

    device, name, step, config = torch.device("cpu"), "run", 3, None

    def __init__(self, task: Brightness) -> None:
        self.task = task


@pytest.fixture
def run_of(monkeypatch: pytest.MonkeyPatch):
    def use(recipe: Recipe) -> None:
        from contextlib import nullcontext

        monkeypatch.setattr(module.TrainedRun, "load", lambda *given: Loaded(Brightness(recipe)))
        monkeypatch.setattr(module, "default_kernels", lambda config: nullcontext())

    return use


def test_masks_have_the_voxels_of_the_image(tmp_path: Path, run_of) -> None:
    """An anisotropic, flipped volume, resampled and cut into overlapping tiles; damaged images fail by name."""
    rng = np.random.default_rng(0)
    blocks = rng.normal(size=(3, 4, 2)).repeat(8, 0).repeat(6, 1).repeat(4, 2)  # [x, y, z]
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = [30, 5, -7]
    (tmp_path / "in/p1").mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(blocks, affine), tmp_path / "in/p1/a.nii.gz")
    (tmp_path / "in/p1/b.nii.gz").write_bytes(b"damaged")
    np.savez(tmp_path / "in/c.npz", image=rng.normal(size=(2, 9, 9)), axes="CYX")
    run_of(Recipe((8, 8, 8), 1, (1.0, 1.0, 1.0), "image", overlap=0.5))
    found = predict_images(tmp_path / "run", tmp_path / "in", tmp_path / "out", show=False)
    assert found["counts"] == {"predicted": 1, "failed": 2, "not attempted": 0}
    rows = {row["id"]: row for row in found["records"]}
    assert "p1/b.nii.gz: cannot be read" in rows["p1/b.nii.gz"]["error"]
    assert "c.npz: [9, 9]; expected a volume" in rows["c.npz"]["error"]
    assert json.loads((tmp_path / "out/summary.json").read_text())["records"] == found["records"]
    mask = nibabel.load(tmp_path / "out" / rows["p1/a.nii.gz"]["files"][0])
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(blocks, affine))
    np.testing.assert_allclose(mask.affine, expected.affine)
    truth = expected.get_fdata() > blocks.mean()
    assert (np.asarray(mask.dataobj).astype(bool) == truth).mean() > 0.95  # interpolation between blocks
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p1_a.nii.gz", "summary.json"]


def test_overlapping_tiles_are_averaged() -> None:
    rng = np.random.default_rng(1)
    recipe = Recipe((4, 4), 1, normalize="none", overlap=0.5)
    values = rng.normal(size=(1, 7, 3)).astype(np.float32)
    logits = image_logits(Brightness(recipe), recipe, Path("x"), Image(values), torch.device("cpu"))
    np.testing.assert_allclose(logits, np.concatenate((-values, values)), rtol=1e-6)


def test_missing_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing: no such image or folder"):
        predict_images(tmp_path, tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ValueError, match="no image below this folder"):
        predict_images(tmp_path, tmp_path, tmp_path / "out")
